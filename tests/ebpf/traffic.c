/* Traffic of known size, on loopback of the network namespace that it is started in.
   tcp PORT BYTES            one connection to itself: write, read, close
   udp PORT BYTES DATAGRAMS  the same with datagrams
   mmsg                      sendmmsg and recvmmsg: prints COOKIE TX_BYTES TX_DATAGRAMS RX_BYTES RX_DATAGRAMS a line
   churn COUNT PORT BYTES    connections one after another, reset by the client; prints seconds
   flood COUNT BYTES         datagrams sent and received; prints nanoseconds of CPU a pair
   paced COUNT PORT BYTES RATE   churn at no more than RATE connections a second
   rate COUNT BYTES RATE     flood at no more than RATE pairs a second */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 20];
static double clock_of(clockid_t id) { struct timespec t; clock_gettime(id, &t); return t.tv_sec + t.tv_nsec / 1e9; }
static void pace(double start, int done, int rate) {
    double ahead = rate ? start + (double)done / rate - clock_of(CLOCK_MONOTONIC) : 0;
    if (ahead > 0.0005) usleep(ahead * 1e6);
}
static struct sockaddr_in at(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    return a;
}
static int bound(int type, int port) {
    struct sockaddr_in a = at(port);
    int s = socket(AF_INET, type, 0), one = 1;
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(s, (void *)&a, sizeof a) || (type == SOCK_STREAM && listen(s, 128))) { perror("bind"); exit(1); }
    return s;
}
static int connected(int type, int to) {
    struct sockaddr_in a; socklen_t size = sizeof a;
    int s = socket(AF_INET, type, 0);
    getsockname(to, (void *)&a, &size);
    if (connect(s, (void *)&a, sizeof a)) { perror("connect"); exit(1); }
    return s;
}
static unsigned long long cookie(int s) { unsigned long long c; socklen_t l = 8; getsockopt(s, SOL_SOCKET, 57, &c, &l); return c; }
static void one_connection(int listener, int bytes, int reset) {
    int client = connected(SOCK_STREAM, listener), server = accept(listener, 0, 0), got = 0, n;
    if (write(client, buffer, bytes) != bytes) exit(2);
    while (got < bytes && (n = read(server, buffer, bytes - got)) > 0) got += n;
    if (reset) { struct linger l = {1, 0}; setsockopt(client, SOL_SOCKET, SO_LINGER, &l, sizeof l); }
    close(client);
    close(server);
    if (got != bytes) exit(3);
}
static void mmsg(void) {
    int receiver = bound(SOCK_DGRAM, 0), sender = connected(SOCK_DGRAM, receiver);
    struct mmsghdr m[10] = {0}; struct iovec io[10]; static char b[10][200];
    for (int i = 0; i < 10; i++) { io[i] = (struct iovec){b[i], 100 + i}; m[i].msg_hdr.msg_iov = &io[i]; m[i].msg_hdr.msg_iovlen = 1; }
    int sent = sendmmsg(sender, m, 10, 0);
    for (int i = 0; i < 10; i++) io[i].iov_len = 200;
    int received = recvmmsg(receiver, m, 10, 0, 0);
    if (sent != 10 || received != 10) exit(4);
    printf("%llu 1045 10 0 0\n%llu 0 0 1045 10\n", cookie(sender), cookie(receiver));
}
int main(int count, char **arguments) {
    int a = count > 2 ? atoi(arguments[2]) : 0, b = count > 3 ? atoi(arguments[3]) : 0, c = count > 4 ? atoi(arguments[4]) : 0;
    int d = count > 5 ? atoi(arguments[5]) : 0;
    char *mode = arguments[1];
    double start = clock_of(CLOCK_MONOTONIC);
    if (!strcmp(mode, "tcp")) one_connection(bound(SOCK_STREAM, a), b, 0);
    else if (!strcmp(mode, "udp")) {
        int receiver = bound(SOCK_DGRAM, a), sender = connected(SOCK_DGRAM, receiver);
        for (int i = 0; i < c; i++) { send(sender, buffer, b, 0); recv(receiver, buffer, sizeof buffer, 0); }
        close(sender);
        close(receiver);
    } else if (!strcmp(mode, "mmsg")) mmsg();
    else if (!strcmp(mode, "churn") || !strcmp(mode, "paced")) {
        int listener = bound(SOCK_STREAM, b);
        for (int i = 0; i < a; i++) { one_connection(listener, c, 1); pace(start, i, d); }
        printf("%.6f\n", clock_of(CLOCK_MONOTONIC) - start);
    } else {
        int receiver = bound(SOCK_DGRAM, 0), sender = connected(SOCK_DGRAM, receiver);
        double cpu = clock_of(CLOCK_PROCESS_CPUTIME_ID);
        for (int i = 0; i < a; i++) {
            send(sender, buffer, b, 0);
            recv(receiver, buffer, sizeof buffer, 0);
            if (!strcmp(mode, "rate") && i % 50 == 0) pace(start, i, c);
        }
        printf("%.1f\n", (clock_of(CLOCK_PROCESS_CPUTIME_ID) - cpu) * 1e9 / a);
    }
    return 0;
}
