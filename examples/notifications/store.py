"""What the app keeps, in SQLite: users, their logins, the rooms they are in, and every notice.

    python store.py                    # make the database, with two users and two rooms

A notice is stored first and told afterwards. Until it has been told its `due` says when somebody should try again, so
that neither a Redis that is away nor the end of a process loses one.

SQLite waits in C, where monkey-patching does not reach; so each call runs in a thread of gevent's pool, and the loop
goes on meanwhile. A database with a driver in Python that is patched needs no such thing.
"""

import argparse
import os
import secrets
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import gevent
from werkzeug.security import check_password_hash, generate_password_hash

Error = sqlite3.Error
PATH = os.environ.get("NOTIFICATIONS_DB") or str(Path(__file__).with_name("notifications.db"))
#: Seconds after which a notice is told again, if nobody has noted that it was: longer than a publish may take.
PATIENCE = 20

SCHEMA = """
CREATE TABLE IF NOT EXISTS users (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, password TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS logins (id TEXT PRIMARY KEY, user INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS rooms (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS seats (room INTEGER NOT NULL, user INTEGER NOT NULL, UNIQUE (room, user));
CREATE TABLE IF NOT EXISTS notices (
    id INTEGER PRIMARY KEY AUTOINCREMENT, channel TEXT NOT NULL, author TEXT NOT NULL, text TEXT NOT NULL, due REAL);
CREATE INDEX IF NOT EXISTS notices_due ON notices (due) WHERE due IS NOT NULL;
"""
TAKE_SEAT = """
INSERT OR IGNORE INTO seats SELECT rooms.id, users.id FROM rooms, users WHERE rooms.name = ? AND users.name = ?
"""
#: Who is in which room at first, and everybody's password.
ROOMS = {"kitchen": ("ann", "bob"), "cellar": ("ann",)}
PASSWORD = "secret"  # noqa: S105 - the page tells it


def _run(sql, values):
    with closing(sqlite3.connect(PATH, timeout=10)) as database, database:
        database.row_factory = sqlite3.Row
        cursor = database.execute(sql, values)
        return [dict(row) for row in cursor] if cursor.description else cursor.lastrowid


def run(sql, *values):
    """Run a statement; return its rows, or the id of the row that it has inserted. Blocks the greenlet."""
    return gevent.get_hub().threadpool.apply(_run, (sql, values))


def create():
    """Make the database with its users and rooms. Blocks."""
    with closing(sqlite3.connect(PATH)) as database, database:
        database.execute("PRAGMA journal_mode = WAL")  # readers do not wait for a writer
        database.executescript(SCHEMA)
        for name in sorted({name for names in ROOMS.values() for name in names}):
            values = (name, generate_password_hash(PASSWORD))
            database.execute("INSERT OR IGNORE INTO users (name, password) VALUES (?, ?)", values)
        for room, names in ROOMS.items():
            database.execute("INSERT OR IGNORE INTO rooms (name) VALUES (?)", (room,))
            for name in names:
                database.execute(TAKE_SEAT, (room, name))


def log_in(name, password):
    """Return the id of a new login; `None` if there is no user with this name and password."""
    for user in run("SELECT * FROM users WHERE name = ?", name):
        if check_password_hash(user["password"], password):
            login = secrets.token_hex(16)
            run("INSERT INTO logins (id, user) VALUES (?, ?)", login, user["id"])
            return login
    return None


def log_out(login):
    """End a login: whoever shows its cookie later is nobody."""
    run("DELETE FROM logins WHERE id = ?", login)


def user_of(login):
    """Return the user of a login, with `id` and `name`; `None` if there is none, or it has ended."""
    rows = run("SELECT users.id, name FROM logins JOIN users ON users.id = user WHERE logins.id = ?", login)
    return rows[0] if rows else None


def people():
    """Return everybody's name by id."""
    return {user["id"]: user["name"] for user in run("SELECT id, name FROM users ORDER BY name")}


def channels_of(user):
    """Return the channels that a user may read, with what the page calls them: its own, and those of its rooms."""
    rooms = run("SELECT id, name FROM rooms JOIN seats ON room = id WHERE user = ? ORDER BY name", user)
    return {f"user:{user}": "you", **{f"room:{room['id']}": room["name"] for room in rooms}}


def add_notice(channel, author, text):
    """Store a notice that has not been told; return it."""
    due = time.time() + PATIENCE
    id = run("INSERT INTO notices (channel, author, text, due) VALUES (?, ?, ?, ?)", channel, author, text, due)
    return {"id": id, "channel": channel, "author": author, "text": text}


def told(id):
    run("UPDATE notices SET due = NULL WHERE id = ?", id)


def not_told(id):
    run("UPDATE notices SET due = ? WHERE id = ?", time.time(), id)


def due_notices():
    """Return notices that should have been told, the oldest first."""
    return run("SELECT id, channel, author, text FROM notices WHERE due < ? ORDER BY id LIMIT 100", time.time())


def last_notices(channel):
    """Return the last notices of a channel, the oldest first."""
    rows = run("SELECT id, channel, author, text FROM notices WHERE channel = ? ORDER BY id DESC LIMIT 50", channel)
    return rows[::-1]


if __name__ == "__main__":
    argparse.ArgumentParser(
        description="Make the database, with two users and two rooms.", allow_abbrev=False
    ).parse_args()
    create()
