/* UDP by io_uring in five ways: prints NAME COOKIE TX_BYTES TX_DATAGRAMS RX_BYTES RX_DATAGRAMS a line. Needs liburing. */
#include <liburing.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static unsigned long long cookie(int s) { unsigned long long c; socklen_t l = 8; getsockopt(s, SOL_SOCKET, 57, &c, &l); return c; }
static int pair(int *sender) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t l = sizeof a;
    int receiver = socket(AF_INET, SOCK_DGRAM, 0);
    bind(receiver, (void *)&a, l);
    getsockname(receiver, (void *)&a, &l);
    *sender = socket(AF_INET, SOCK_DGRAM, 0);
    connect(*sender, (void *)&a, l);
    return receiver;
}
static int done(struct io_uring *ring) {
    struct io_uring_cqe *c;
    if (io_uring_wait_cqe(ring, &c)) exit(2);
    int result = c->res;
    io_uring_cqe_seen(ring, c);
    return result;
}
static void go(const char *name, unsigned flags, int async, int zero_copy) {
    struct io_uring ring;
    if (io_uring_queue_init(64, &ring, flags)) return;
    static char b[2000];
    int sender, receiver = pair(&sender);
    long tx = 0, rx = 0;
    for (int i = 0; i < 5; i++) {
        struct io_uring_sqe *s = io_uring_get_sqe(&ring);
        if (zero_copy) io_uring_prep_send_zc(s, sender, b, 100, 0, 0); else io_uring_prep_send(s, sender, b, 100, 0);
        if (async) s->flags |= IOSQE_ASYNC;
        io_uring_submit(&ring);
        tx += done(&ring);
        if (zero_copy) done(&ring);
        s = io_uring_get_sqe(&ring);
        io_uring_prep_recv(s, receiver, b, sizeof b, 0);
        if (async) s->flags |= IOSQE_ASYNC;
        io_uring_submit(&ring);
        rx += done(&ring);
    }
    printf("%s %llu %ld 5 0 0\n%s %llu 0 0 %ld 5\n", name, cookie(sender), tx, name, cookie(receiver), rx);
    io_uring_queue_exit(&ring);
    close(sender);
    close(receiver);
}
int main(void) {
    go("plain", 0, 0, 0);
    go("workers", 0, 1, 0);
    go("polled", IORING_SETUP_SQPOLL, 0, 0);
    go("zero-copy", 0, 0, 1);
    return 0;
}
