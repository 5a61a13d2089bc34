"""A clock of its own for a program: a library that is loaded before the C library, and adds seconds from a file.

libfaketime does that for any program, but not for Debian's redis-server: it and jemalloc wait for each other.
"""

from __future__ import annotations

import shutil
import struct
import subprocess

COMPILER = shutil.which("cc") or shutil.which("gcc")

_SOURCE = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const long long *added;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("CLOCK_FILE"), O_RDONLY);
    void *page = mmap(NULL, sizeof *added, PROT_READ, MAP_SHARED, file, 0);
    added = page == MAP_FAILED ? NULL : page;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (added && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *added;
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *place) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place) *place = now.tv_sec;
    return now.tv_sec;
}
"""


class Clock:
    """The clock of programs that are started with `environment`."""

    def __init__(self, folder):
        folder.mkdir()
        self._file = folder / "seconds"
        self._file.write_bytes(struct.pack("q", 0))
        library = folder / "clock.so"
        command = [COMPILER, "-shared", "-fPIC", "-O1", "-o", str(library), "-x", "c", "-"]
        subprocess.run(command, input=_SOURCE.encode(), check=True)
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_FILE": str(self._file)}

    def set(self, seconds):
        """Set the clock to `seconds` from now."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("q", seconds))
