/* The floor: what the system calls cost alone. One thread, epoll, one recv and one send for what has come, and nothing
 * is checked. It echoes binary messages of up to 256 KiB, or publishes those of up to 125 bytes to all who have
 * subscribed, to whatever; what is published in one turn leaves with one send for each. usage: PORT echo|relay */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define ROOM (256 << 10)
#define MOST 16384

struct connection {
  int fd, upgraded;
  size_t held;
  unsigned char bytes[ROOM + 1];
};

static unsigned char out[ROOM];

static struct {
  int to[MOST];
  size_t subscribers, size;
  unsigned char frames[ROOM];
} published;

static void add(int epoll, int fd, void *what) {
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
  epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

static void send_all(int fd, const void *from, size_t size) {
  for (const char *p = from; size > 0;) {
    ssize_t sent = send(fd, p, size, MSG_NOSIGNAL);
    if (sent < 0) return; /* the peer is gone: the next recv says so */
    p += sent;
    size -= sent;
  }
}

static void upgrade(struct connection *c) {
  c->bytes[c->held] = 0;
  char *key = strstr((char *)c->bytes, "Sec-WebSocket-Key: "), joined[64], accept[32], head[256];
  unsigned char digest[SHA_DIGEST_LENGTH];
  if (!key || !strstr((char *)c->bytes, "\r\n\r\n")) return;
  int size = snprintf(joined, sizeof joined, "%.24s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key + 19);
  SHA1((unsigned char *)joined, size, digest);
  EVP_EncodeBlock((unsigned char *)accept, digest, sizeof digest);
  size = snprintf(head, sizeof head,
                  "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                  "Sec-WebSocket-Accept: %s\r\n\r\n", accept);
  send_all(c->fd, head, size);
  c->upgraded = 1;
  c->held = 0;
}

/* Write the frame at `at` as it is from a server, and move on; return its size, 0 if it is not there as a whole. */
static size_t take(struct connection *c, size_t *at, unsigned char *to, size_t *header) {
  unsigned char *frame = c->bytes + *at;
  size_t held = c->held - *at, length;
  if (held < 6) return 0;
  *header = 2;
  length = frame[1] & 127;
  if (length == 126) length = frame[2] << 8 | frame[3], *header = 4;
  else if (length == 127) {
    if (held < 10) return 0;
    *header = 10;
    length = 0;
    for (int i = 2; i < 10; i++) length = length << 8 | frame[i];
  }
  if (held < *header + 4 + length) return 0;
  memcpy(to, frame, *header);
  to[1] &= 127;
  to += *header;
  unsigned char *mask = frame + *header, *payload = mask + 4;
  for (size_t i = 0; i < length; i++) to[i] = payload[i] ^ mask[i & 3];
  *at += *header + 4 + length;
  return *header + length;
}

static size_t echo(struct connection *c, size_t *at) {
  size_t written = 0, size, header;
  while ((size = take(c, at, out + written, &header))) written += size;
  return written;
}

static void publish(void) {
  if (published.size)
    for (size_t i = 0; i < published.subscribers; i++) send_all(published.to[i], published.frames, published.size);
  published.size = 0;
}

static size_t relay(struct connection *c, size_t *at) {
  size_t written = 0, size, header;
  unsigned char frame[ROOM];
  while ((size = take(c, at, frame, &header))) {
    unsigned char *end = frame + size, *channel = memchr(frame + header, ':', size - header);
    unsigned char *body = channel ? memchr(channel + 1, ':', end - channel - 1) : NULL;
    if (body++) {
      if (published.size + 2 + (end - body) > ROOM) publish();
      published.frames[published.size++] = 0x82;
      published.frames[published.size++] = end - body;
      memcpy(published.frames + published.size, body, end - body);
      published.size += end - body;
    } else if (published.subscribers < MOST) published.to[published.subscribers++] = c->fd;
    memcpy(out + written, "\x82\x02OK", 4);
    written += 4;
  }
  return written;
}

static void leave(int fd) {
  for (size_t i = 0; i < published.subscribers; i++)
    if (published.to[i] == fd) published.to[i--] = published.to[--published.subscribers];
  close(fd);
}

int main(int argc, char **argv) {
  int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1, epoll = epoll_create1(0);
  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(listener, (void *)&address, sizeof address) || listen(listener, 1024)) return 1;
  add(epoll, listener, NULL);
  size_t (*answer)(struct connection *, size_t *) = strcmp(argv[2], "relay") ? echo : relay;
  for (;;) {
    struct epoll_event events[512];
    int number = epoll_wait(epoll, events, 512, -1);
    for (int i = 0; i < number; i++) {
      struct connection *c = events[i].data.ptr;
      if (!c) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) continue;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        c = malloc(sizeof *c);
        c->fd = fd;
        c->upgraded = c->held = 0;
        add(epoll, fd, c);
        continue;
      }
      ssize_t received = recv(c->fd, c->bytes + c->held, ROOM - c->held, 0);
      if (received <= 0) {
        leave(c->fd);
        free(c);
        continue;
      }
      c->held += received;
      if (!c->upgraded) {
        upgrade(c);
        continue;
      }
      size_t at = 0, written = answer(c, &at);
      memmove(c->bytes, c->bytes + at, c->held - at);
      c->held -= at;
      if (written) send_all(c->fd, out, written);
    }
    publish();
  }
}
