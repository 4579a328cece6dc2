// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
//
// The programs of the eBPF source. They report which process opened which socket, when, and the socket's traffic.
//
// They only observe: every path of a cgroup program returns 1 ("let it pass"), every other program returns 0. A test
// follows all paths of the compiled instructions and proves it. They are built by tools/ebpf_table.py into programs.bpf, a listing
// that the library loads without a compiler: field offsets are looked up by name in the running kernel's BTF.
//
// A struct here names only the fields that are read. Byte layouts shared with ebpf/_records.py: facts, record, flow,
// owner, peer_key, peer, changed.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long s64;

#define SECTION(name) __attribute__((section(name), used))
#define RELOCATED __attribute__((preserve_access_index))
#define INLINE static __attribute__((always_inline)) inline
#define EXISTS(field) __builtin_preserve_field_info(field, 2)
#define NUMBER(name, value) int(*name)[value]
#define TYPE(name, type) type *name

// --- the kernel's structures -------------------------------------------------------------

struct kernfs_node { u64 id; } RELOCATED;
struct cgroup { struct kernfs_node *kn; } RELOCATED;
struct sock_cgroup_data { struct cgroup *cgroup; } RELOCATED;
struct ns_common { u32 inum; } RELOCATED;
struct net { u64 net_cookie; struct ns_common ns; } RELOCATED;
typedef struct { struct net *net; } possible_net_t;
typedef struct { s64 counter; } atomic64_t;
typedef struct { u32 val; } kuid_t;
struct in6_addr { u64 words[2]; };
struct socket;
struct sock_common {
    u32 skc_daddr, skc_rcv_saddr;
    u16 skc_dport, skc_num, skc_family;
    u8 skc_state;
    int skc_bound_dev_if;
    unsigned long skc_flags;
    possible_net_t skc_net;
    atomic64_t skc_cookie;
    struct in6_addr skc_v6_daddr, skc_v6_rcv_saddr;
} RELOCATED;
struct sock {
    struct sock_common __sk_common;
    struct socket *sk_socket;
    u16 sk_protocol, sk_type;
    int sk_rx_dst_ifindex;
    int sk_err;
    u8 sk_shutdown;
    kuid_t sk_uid;
    struct sock_cgroup_data sk_cgrp_data;
} RELOCATED;
struct inet_sock { u16 inet_sport; } RELOCATED;
struct inet_connection_sock { struct { u32 lrcvtime; } icsk_ack; } RELOCATED;
struct tcp_sock {
    u32 rcv_tstamp, lsndtime;
    u64 bytes_sent, bytes_acked, bytes_received, bytes_retrans;
    u32 data_segs_out, data_segs_in, total_retrans, srtt_us;
} RELOCATED;
struct mptcp_sock { struct sock *first; } RELOCATED;
struct task_struct {
    u32 flags;
    int pid, tgid;
    u64 start_boottime;
    struct task_struct *group_leader;
    char comm[16];
} RELOCATED;
struct inode { unsigned long i_ino; } RELOCATED;
struct file { struct inode *f_inode; } RELOCATED;
struct socket { struct sock *sk; } RELOCATED;
struct seq_file {};
struct bpf_iter_meta { struct seq_file *seq; u64 session_id; } RELOCATED;
struct bpf_iter__task_file { struct bpf_iter_meta *meta; struct task_struct *task; u32 fd; struct file *file; } RELOCATED;

struct bpf_iter__tcp { struct bpf_iter_meta *meta; struct sock_common *sk_common; } RELOCATED;

// Contexts that are part of the uapi, so that their offsets never change.
struct bpf_sock {
    u32 bound_dev_if, family, type, protocol, mark, priority, src_ip4, src_ip6[4], src_port;
    u16 dst_port, pad;
    u32 dst_ip4, dst_ip6[4], state;
    int rx_queue_mapping;
};
struct __sk_buff {
    u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto, priority, ingress_ifindex,
        ifindex, tc_index, cb[5], hash, tc_classid, data, data_end, napi_id, family, remote_ip4, local_ip4,
        remote_ip6[4], local_ip6[4], remote_port, local_port, data_meta;
    u64 flow_keys, tstamp;
    u32 wire_len, gso_segs;
    struct bpf_sock *sk;
    u32 gso_size;
};

// --- helpers of the kernel, by their number in the uapi ----------------------------------

static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*map_delete)(void *map, const void *key) = (void *)3;
static u64 (*current_pid_tgid)(void) = (void *)14;
static u64 (*current_uid_gid)(void) = (void *)15;
static long (*load_bytes)(void *skb, u32 offset, void *to, u32 length) = (void *)26;
static u64 (*socket_cookie)(void *context) = (void *)46;
static u64 (*current_cgroup_id)(void) = (void *)80;
static struct bpf_sock *(*full_socket)(struct bpf_sock *socket) = (void *)95;
static long (*probe_read_kernel)(void *to, u32 length, const void *from) = (void *)113;
static u64 (*jiffies)(void) = (void *)118;
static u64 (*netns_cookie)(void *context) = (void *)122;
static u64 (*boot_time)(void) = (void *)125;
static long (*seq_write)(struct seq_file *to, const void *data, u32 length) = (void *)127;
static void *(*ring_reserve)(void *ring, u64 size, u64 flags) = (void *)131;
static void (*ring_submit)(void *record, u64 flags) = (void *)132;
static struct tcp_sock *(*as_tcp)(void *socket) = (void *)137;
static struct task_struct *(*current_task)(void) = (void *)158;
static struct socket *(*socket_of_file)(struct file *file) = (void *)162;

enum { NOEXIST = 1, EEXIST = 17 };
enum { INET = 2, INET6 = 10, PACKET = 17 };
enum { STREAM = 1, DATAGRAM = 2, RAW = 3 };
enum { TCP = 6, UDP = 17, MPTCP = 262 };
enum { TCP_ESTABLISHED = 1, TCP_SYN_SENT = 2, TCP_CLOSE = 7, TCP_LISTEN = 10 };
enum { NO_SOCKETS = 1 << 3 | 1 << 6 | 1 << 7 | 1 << TCP_LISTEN | 1 << 12 };   // no connections; listeners are dumped
enum { ON_THEIR_WAY = 1 << TCP_SYN_SENT | 1 << 4 | 1 << 9 | 1 << 11 };        // being opened, FIN_WAIT1, LAST_ACK, CLOSING
enum { SOCK_DONE_BIT = 2 };                 // 1 << SOCK_DONE of sk_flags: set by tcp_fin() only
enum { RCV_SHUTDOWN = 1 };
enum { KERNEL_THREAD = 0x200000 };          // PF_KTHREAD
enum { PEEK_OR_ERRQUEUE = 0x2002 };         // MSG_PEEK, MSG_ERRQUEUE: no data was taken from the socket

// --- what is reported ----------------------------------------------------------------------

enum kind { OPENED = 1, ESTABLISHED, ACCEPTED, CLOSED, FIRST_IO, RELEASED };
enum flag {
    HAS_PROCESS = 1, ANNOUNCED = 2, BY_CLOSER = 4, FIN_RECEIVED = 8, BY_CREATOR = 16, COUNTED_FROM_BIRTH = 32,
    ERROR_KNOWN = 64, SHUT_FOR_READING = 128,              // of CLOSED: the error is the third byte
};
enum statistic { SUBMITTED, RING_FULL, MAP_FULL, CAUGHT_BY_SECOND, MOVED = 8 };   // MOVED has a cache line of its own

struct who { u64 start; u32 tgid, tid; char comm[16]; };   // name and start are those of the thread group's leader
struct facts {                                             // 112 bytes
    u64 net_cookie, cgroup;
    struct who who;
    u32 netns, uid, ifindex, flags;
    u16 family, protocol, local_port, remote_port;         // local in host order, remote in network order
    u8 type, kind, old, new;                               // kind, old and new only in records; new is the state in owners
    u32 last_tgid;                                         // the process of the last I/O
    u64 local[2], remote[2];
};
struct counts {                                            // 64 bytes; in parentheses: what a TCP record has there
    u64 tx_bytes, tx_calls;                                // by the length hooks (bytes sent, acknowledged)
    u64 rx_bytes, rx_calls;                                // (bytes received, bytes retransmitted)
    u64 tx_payload, rx_payload;                            // by the packet hooks (segments retransmitted, 8 * smoothed rtt)
    u64 tx_packets, rx_packets;                            // (segments out, in)
};
struct record { u64 time, cookie; struct facts facts; struct counts counts; };
struct flow { struct counts counts; u64 first; struct facts facts; };
struct owner { u64 cookie, inode; struct facts facts; u64 fd; };
struct peer_key { u64 cookie, address[2]; u16 port, family; u32 pad; };
struct peer { u64 tx_bytes, tx_packets, rx_bytes, rx_packets, last; u32 ifindex, pad; };
struct changed { u64 cookie, net_cookie, local[2], remote[2]; u32 ifindex, number; u16 local_port, remote_port; u8 family, state; u16 pad; };
struct done { u64 socket; u32 old, new; };
struct walk { u64 session; u32 since, begun, number, pad; };

struct { NUMBER(type, 27); NUMBER(max_entries, 4194304); } ring SECTION(".maps");
struct { NUMBER(type, 1); NUMBER(max_entries, 65536); TYPE(key, u64); TYPE(value, struct flow); } flows SECTION(".maps");
struct { NUMBER(type, 2); NUMBER(max_entries, 16); NUMBER(map_flags, 1024); TYPE(key, u32); TYPE(value, u64); } statistics SECTION(".maps");
struct { NUMBER(type, 9); NUMBER(max_entries, 16384); TYPE(key, struct peer_key); TYPE(value, struct peer); } peers SECTION(".maps");
struct { NUMBER(type, 6); NUMBER(max_entries, 1); TYPE(key, u32); TYPE(value, struct done); } last_done SECTION(".maps");
struct { NUMBER(type, 2); NUMBER(max_entries, 1); TYPE(key, u32); TYPE(value, struct walk); } walks SECTION(".maps");

// --- constants set by the loader: the verifier removes the branches that they make unreachable -------

INLINE u64 only_namespace(void) { u64 v; asm volatile("%0 = 0x4e53544154430000 ll" : "=r"(v)); return v; }   // a cookie; 0: all
INLINE u64 options(void) { u64 v; asm volatile("%0 = 0x4e53544154430001 ll" : "=r"(v)); return v; }
enum option { RELEASE_SEEN = 1, LEARN_TCP_OWNERS = 2, COUNT_PEERS = 4, LOOK_INTO_MPTCP = 8, PACKETS_CREATE = 16, LENGTHS_SEEN = 32 };
INLINE int option(u64 which) { return (options() & which) != 0; }

// --- describing a socket and its process -------------------------------------------------------

INLINE void count(u32 which) {
    u64 *value = map_lookup(&statistics, &which);
    if (value) __sync_fetch_and_add(value, 1);
}

// Note that counts grew. A reader sets this to 0 before it reads the counts, and here it is set after they grew. So a
// reader that misses a growth finds the mark at its next reading.
INLINE void mark_moved(void) {
    u32 which = MOVED;
    volatile u64 *moved = map_lookup(&statistics, &which);
    if (moved && !*moved) *moved = 1;
}

INLINE void make_entry(u64 cookie, struct flow *flow) {
    long error = map_update(&flows, &cookie, flow, NOEXIST);
    if (error && error != -EEXIST) count(MAP_FULL);
}

INLINE void describe_task(struct who *who, struct task_struct *task) {
    struct task_struct *leader = task->group_leader;
    const char *comm = __builtin_preserve_access_index(&leader->comm[0]);
    who->start = leader->start_boottime;
    who->tgid = task->tgid;
    who->tid = task->pid;
    ((u64 *)who->comm)[0] = *(u64 *)comm;
    ((u64 *)who->comm)[1] = *(u64 *)(comm + 8);
}

INLINE void describe_process(struct facts *facts) {
    describe_task(&facts->who, current_task());
    if (facts->who.tgid) facts->flags |= HAS_PROCESS;      // 0 is the idle task: this is an interrupt, without a process
}

INLINE int wanted(struct sock *sk) {
    u16 family = sk->__sk_common.skc_family;
    if (family != INET && family != INET6 && family != PACKET) return 0;
    return !only_namespace() || sk->__sk_common.skc_net.net->net_cookie == only_namespace();
}

INLINE void describe_ends(struct facts *facts, struct sock *sk) {
    u16 family = sk->__sk_common.skc_family;
    facts->local[0] = facts->local[1] = facts->remote[0] = facts->remote[1] = 0;
    facts->local_port = facts->remote_port = 0;
    if (family == PACKET) return;                          // it uses the union of ports and addresses for other things
    if (sk->sk_type != RAW) {                              // a raw socket's number is its protocol
        facts->local_port = sk->__sk_common.skc_num;
        facts->remote_port = sk->__sk_common.skc_dport;
    }
    if (family == INET6) {
        facts->local[0] = sk->__sk_common.skc_v6_rcv_saddr.words[0];
        facts->local[1] = sk->__sk_common.skc_v6_rcv_saddr.words[1];
        facts->remote[0] = sk->__sk_common.skc_v6_daddr.words[0];
        facts->remote[1] = sk->__sk_common.skc_v6_daddr.words[1];
    } else {
        facts->local[0] = sk->__sk_common.skc_rcv_saddr;
        facts->remote[0] = sk->__sk_common.skc_daddr;
    }
}

INLINE void describe_socket(struct facts *facts, struct sock *sk) {
    struct net *net = sk->__sk_common.skc_net.net;
    struct cgroup *cgroup = sk->sk_cgrp_data.cgroup;
    facts->net_cookie = net->net_cookie;
    facts->netns = net->ns.inum;
    facts->cgroup = cgroup ? cgroup->kn->id : 0;
    facts->uid = sk->sk_uid.val;
    facts->ifindex = EXISTS(sk->sk_rx_dst_ifindex) ? sk->sk_rx_dst_ifindex : 0;   // since Linux 5.15
    facts->family = sk->__sk_common.skc_family;
    facts->protocol = sk->sk_protocol;
    facts->type = sk->sk_type;
    describe_ends(facts, sk);
}

INLINE void report_flow(u64 cookie, struct flow *flow, u8 kind) {
    struct record *record = ring_reserve(&ring, sizeof *record, 0);
    if (!record) { count(RING_FULL); return; }
    record->time = boot_time();
    record->cookie = cookie;
    record->facts = flow->facts;
    record->facts.kind = kind;
    record->counts = flow->counts;
    ring_submit(record, 0);
    count(SUBMITTED);
}

// --- TCP: changes of state --------------------------------------------------------------------
//
// The kernel skips a tracing program that is already running on this CPU. That happens if an interrupt comes meanwhile, and
// its softirq changes another socket's state. So two copies are attached, and the second one reports what the first one was
// skipped for. It recognises that because the last event that the first one finished on this CPU is another one.

INLINE u8 kind_of_change(int old, int new) {
    if (old == new) return 0;
    if (new == TCP_SYN_SENT) return OPENED;
    if (new == TCP_LISTEN) return FIRST_IO;
    if (new == TCP_ESTABLISHED) return old == TCP_SYN_SENT ? ESTABLISHED : ACCEPTED;
    return new == TCP_CLOSE && old != TCP_LISTEN ? CLOSED : 0;
}

INLINE void keep_owner_entry(u64 cookie, struct sock *sk, u8 kind) {
    if (kind == CLOSED) {
        // If it was reset by the peer before its owner was known, and is not closed yet, cgroup/sock_release tells the owner.
        struct flow *flow = option(RELEASE_SEEN) && sk->sk_socket ? map_lookup(&flows, &cookie) : 0;
        if (!flow || flow->facts.flags & HAS_PROCESS) map_delete(&flows, &cookie);
    } else if (kind == ACCEPTED) {
        struct flow flow = {};
        flow.first = boot_time();
        describe_socket(&flow.facts, sk);
        make_entry(cookie, &flow);
    }
}

INLINE int change_of_state(u64 *context, int second) {
    struct sock *sk = (void *)context[0];
    int old = context[1], new = context[2];
    u8 kind = kind_of_change(old, new);
    u32 zero = 0;
    if (!kind || !wanted(sk) || sk->sk_protocol != TCP) return 0;
    struct done *done = map_lookup(&last_done, &zero);
    if (!done) return 0;
    if (second) {
        if (done->socket == (u64)sk && done->old == old && done->new == new) { done->socket = 0; return 0; }
        count(CAUGHT_BY_SECOND);
    }
    u64 cookie = socket_cookie(sk);
    if (option(LEARN_TCP_OWNERS)) keep_owner_entry(cookie, sk, kind);
    struct record *record = ring_reserve(&ring, sizeof *record, 0);
    if (!record) { count(RING_FULL); return 0; }
    __builtin_memset(record, 0, sizeof *record);
    record->time = boot_time();
    record->cookie = cookie;
    describe_socket(&record->facts, sk);
    record->facts.kind = kind;
    record->facts.old = old;
    record->facts.new = new;
    // A kernel thread that connects does so for the process that has the socket (a subflow of Multipath TCP), or for the kernel.
    if ((kind == OPENED || kind == FIRST_IO) && !(current_task()->flags & KERNEL_THREAD)) describe_process(&record->facts);
    if (kind == FIRST_IO) record->facts.flags |= BY_CREATOR;   // the caller of listen(2) may hand the socket to others
    if (sk->__sk_common.skc_flags & SOCK_DONE_BIT) record->facts.flags |= FIN_RECEIVED;
    if (kind == CLOSED) {                                  // tcp_reset(), tcp_write_err() and tcp_abort() set it before
        record->facts.flags |= ERROR_KNOWN | (sk->sk_err & 0xff) << 16;
        if (sk->sk_shutdown & RCV_SHUTDOWN) record->facts.flags |= SHUT_FOR_READING;
    }
    struct tcp_sock *tcp = as_tcp(sk);
    if (tcp) {
        // inet_put_port() has cleared skc_num by now. An attempt that found no free port has the one of the connection before.
        if (kind == CLOSED) record->facts.local_port = __builtin_bswap16(((struct inet_sock *)tcp)->inet_sport);
        record->counts.tx_bytes = tcp->bytes_sent;
        record->counts.tx_calls = tcp->bytes_acked;
        record->counts.rx_bytes = tcp->bytes_received;
        record->counts.rx_calls = tcp->bytes_retrans;
        record->counts.tx_payload = tcp->total_retrans;
        record->counts.rx_payload = tcp->srtt_us;
        record->counts.tx_packets = tcp->data_segs_out;
        record->counts.rx_packets = tcp->data_segs_in;
    }
    ring_submit(record, 0);
    count(SUBMITTED);
    if (!second) { done->old = old; done->new = new; done->socket = (u64)sk; }
    return 0;
}
SECTION("tp_btf/inet_sock_set_state") int tcp_state(u64 *context) { return change_of_state(context, 0); }
SECTION("tp_btf/inet_sock_set_state@2") int tcp_state_again(u64 *context) { return change_of_state(context, 1); }

// --- sends and receives: the bytes of all protocols but TCP, and owners of accepted TCP sockets ---

INLINE void learn_owner(u64 cookie, struct sock *sk) {
    struct flow *flow = map_lookup(&flows, &cookie);
    if (!flow || flow->facts.flags & HAS_PROCESS) return;
    if (!(current_pid_tgid() >> 32)) return;
    describe_process(&flow->facts);
    report_flow(cookie, flow, FIRST_IO);
    flow->facts.flags |= ANNOUNCED;
}

INLINE void learn_owner_of_subflow(struct sock *sk) {      // each subflow is a flow, but I/O happens on their parent
    struct sock *first = 0;
    u64 cookie = 0;
    probe_read_kernel(&first, sizeof first, __builtin_preserve_access_index(&((struct mptcp_sock *)sk)->first));
    if (!first) return;
    probe_read_kernel(&cookie, sizeof cookie, __builtin_preserve_access_index(&first->__sk_common.skc_cookie.counter));
    if (cookie) learn_owner(cookie, sk);
}

INLINE struct flow *flow_of(u64 *cookie, int create) {
    struct flow *flow = map_lookup(&flows, cookie);
    if (flow || !create) return flow;
    struct flow empty = {};
    empty.first = boot_time();
    map_update(&flows, cookie, &empty, NOEXIST);
    flow = map_lookup(&flows, cookie);
    if (!flow) count(MAP_FULL);
    return flow;
}

INLINE int transfer(u64 *context, int sent) {
    struct sock *sk = (void *)context[0];
    int result = context[1];
    u32 flags = context[2];
    if (!sent && flags & PEEK_OR_ERRQUEUE) return 0;
    if (!wanted(sk)) return 0;
    u16 type = sk->sk_type;
    if (type == STREAM) {
        u16 protocol = sk->sk_protocol;                    // also a call that fails tells the owner
        if (protocol == TCP && option(LEARN_TCP_OWNERS)) learn_owner(socket_cookie(sk), sk);
        if (protocol == MPTCP && option(LOOK_INTO_MPTCP)) learn_owner_of_subflow(sk);
        return 0;
    }
    if (result < 0 || (type != DATAGRAM && type != RAW)) return 0;
    u64 cookie = socket_cookie(sk);
    struct flow *flow = flow_of(&cookie, 1);
    if (!flow) return 0;
    u32 known = flow->facts.flags, tgid = current_pid_tgid() >> 32;
    if (!(known & ANNOUNCED) || (tgid && (!(known & HAS_PROCESS) || known & BY_CREATOR))) {
        describe_socket(&flow->facts, sk);
        flow->facts.flags &= ~BY_CREATOR;
        describe_process(&flow->facts);
        report_flow(cookie, flow, FIRST_IO);
        flow->facts.flags |= ANNOUNCED;
    } else if (type != RAW && sk->__sk_common.skc_family != PACKET &&
               (flow->facts.remote_port != sk->__sk_common.skc_dport || flow->facts.local_port != sk->__sk_common.skc_num)) {
        describe_ends(&flow->facts, sk);                   // it was connected, or connected again
    }
    if (flow->facts.last_tgid != tgid) flow->facts.last_tgid = tgid;
    if (sent) {
        __sync_fetch_and_add(&flow->counts.tx_bytes, result);
        __sync_fetch_and_add(&flow->counts.tx_calls, 1);
    } else {
        __sync_fetch_and_add(&flow->counts.rx_bytes, result);
        __sync_fetch_and_add(&flow->counts.rx_calls, 1);
    }
    mark_moved();
    return 0;
}
SECTION("tp_btf/sock_send_length") int sent(u64 *context) { return transfer(context, 1); }
SECTION("tp_btf/sock_recv_length") int received(u64 *context) { return transfer(context, 0); }

// --- a socket is made, a socket is released -----------------------------------------------------

SECTION("cgroup/sock_create") int created(struct bpf_sock *socket) {
    if (socket->family != INET && socket->family != INET6) return 1;
    if (socket->type != DATAGRAM && socket->type != RAW) return 1;
    u64 namespace = netns_cookie(socket), cookie = socket_cookie(socket);
    if (only_namespace() && namespace != only_namespace()) return 1;
    struct flow flow = {};
    flow.first = boot_time();
    flow.facts.net_cookie = namespace;
    flow.facts.cgroup = current_cgroup_id();
    flow.facts.uid = current_uid_gid();
    flow.facts.family = socket->family;
    flow.facts.protocol = socket->protocol;
    flow.facts.type = socket->type;
    flow.facts.flags = BY_CREATOR | COUNTED_FROM_BIRTH;
    describe_process(&flow.facts);
    make_entry(cookie, &flow);
    return 1;
}

SECTION("cgroup/sock_release") int released(struct bpf_sock *socket) {
    u64 cookie = socket_cookie(socket);
    struct flow *flow = map_lookup(&flows, &cookie);
    if (!flow) return 1;
    u32 known = flow->facts.flags;
    if (!(known & HAS_PROCESS)) {                          // no call was seen that used it: its closer had it
        describe_process(&flow->facts);
        flow->facts.flags |= BY_CLOSER;
    }
    if (socket->type == STREAM) {
        if (!(known & HAS_PROCESS)) report_flow(cookie, flow, FIRST_IO);
        if (socket->state == TCP_CLOSE) map_delete(&flows, &cookie);   // else CLOSED deletes it
        return 1;
    }
    report_flow(cookie, flow, RELEASED);
    map_delete(&flows, &cookie);
    return 1;
}

// --- UDP datagrams, when they pass the socket's cgroup ------------------------------------------

struct ends { u64 from[2], to[2]; u32 udp; u16 family; };

INLINE u32 word_pair(u32 *words, int at, u64 *out) {
    out[0] = (u64)words[at + 1] << 32 | words[at];
    out[1] = (u64)words[at + 3] << 32 | words[at + 2];
    return 0;
}

INLINE int parse(struct __sk_buff *skb, struct ends *ends) {
    struct { u32 words[10]; } header;
    if (skb->protocol == 0x0008) {
        if (load_bytes(skb, 0, &header, 20)) return 0;
        if ((header.words[2] >> 8 & 0xff) != UDP) return 0;
        ends->udp = (header.words[0] & 15) * 4;
        ends->from[0] = header.words[3];
        ends->to[0] = header.words[4];
        ends->family = INET;
        return 1;
    }
    if (skb->protocol != 0xdd86) return 0;
    if (load_bytes(skb, 0, &header, 40)) return 0;
    u32 next = header.words[1] >> 16 & 0xff, at = 40;
    for (int i = 0; i < 4; i++) {                          // hop-by-hop, routing, destination options
        if (next != 0 && next != 43 && next != 60) break;
        u8 extension[2];
        if (load_bytes(skb, at, extension, 2)) return 0;
        next = extension[0];
        at += (extension[1] + 1) * 8;
    }
    if (next != UDP) return 0;
    ends->udp = at;
    word_pair(header.words, 2, ends->from);
    word_pair(header.words, 6, ends->to);
    ends->family = INET6;
    return 1;
}

INLINE void announce_by_packet(u64 cookie, struct flow *flow, struct bpf_sock *socket, struct ends *ends, int out) {
    if (!(flow->facts.flags & HAS_PROCESS) || flow->facts.flags & ANNOUNCED) return;
    flow->facts.local_port = socket->src_port;
    flow->facts.remote_port = socket->dst_port;
    flow->facts.local[0] = out ? ends->from[0] : ends->to[0];
    flow->facts.local[1] = out ? ends->from[1] : ends->to[1];
    if (socket->dst_port) {
        flow->facts.remote[0] = out ? ends->to[0] : ends->from[0];
        flow->facts.remote[1] = out ? ends->to[1] : ends->from[1];
    }
    report_flow(cookie, flow, FIRST_IO);
    flow->facts.flags |= ANNOUNCED;
}

INLINE void count_peer(struct __sk_buff *skb, u64 cookie, struct ends *ends, int out, u64 payload, u64 packets) {
    struct peer_key key = {};
    key.cookie = cookie;
    key.address[0] = out ? ends->to[0] : ends->from[0];
    key.address[1] = out ? ends->to[1] : ends->from[1];
    key.family = ends->family;
    if (load_bytes(skb, ends->udp + (out ? 2 : 0), &key.port, 2)) return;
    struct peer *peer = map_lookup(&peers, &key);
    if (!peer) {
        struct peer empty = {};
        map_update(&peers, &key, &empty, NOEXIST);
        peer = map_lookup(&peers, &key);
        if (!peer) return;                                 // it counts as part of the remainder, which is the flow minus its peers
    }
    __sync_fetch_and_add(out ? &peer->tx_bytes : &peer->rx_bytes, payload);
    __sync_fetch_and_add(out ? &peer->tx_packets : &peer->rx_packets, packets);
    peer->last = boot_time();
    peer->ifindex = skb->ifindex;
}

INLINE int packet(struct __sk_buff *skb, int out) {
    struct ends ends = {};
    if (!parse(skb, &ends)) return 1;
    u64 cookie = socket_cookie(skb);
    if (!cookie) return 1;
    struct flow *flow = flow_of(&cookie, option(PACKETS_CREATE));
    if (!flow) return 1;
    // Several datagrams in one buffer (GSO) have one header here, so the rest of the length is payload.
    u64 payload = skb->len - ends.udp - 8, packets = skb->gso_segs ? skb->gso_segs : 1;
    __sync_fetch_and_add(out ? &flow->counts.tx_payload : &flow->counts.rx_payload, payload);
    __sync_fetch_and_add(out ? &flow->counts.tx_packets : &flow->counts.rx_packets, packets);
    if (flow->facts.ifindex != skb->ifindex) flow->facts.ifindex = skb->ifindex;
    mark_moved();
    if (option(LENGTHS_SEEN) && !option(COUNT_PEERS)) return 1;
    struct bpf_sock *socket = skb->sk;
    if (!socket) return 1;
    socket = full_socket(socket);
    if (!socket) return 1;
    if (!option(LENGTHS_SEEN)) announce_by_packet(cookie, flow, socket, &ends, out);
    if (option(COUNT_PEERS) && !socket->dst_port) count_peer(skb, cookie, &ends, out, payload, packets);
    return 1;
}
SECTION("cgroup_skb/ingress") int ingress(struct __sk_buff *skb) { return packet(skb, 0); }
SECTION("cgroup_skb/egress") int egress(struct __sk_buff *skb) { return packet(skb, 1); }

// --- all sockets of all processes: older ones than the programs, and which ones still exist -------

SECTION("iter/task_file") int owners(struct bpf_iter__task_file *context) {
    struct file *file = context->file;
    struct task_struct *task = context->task;
    if (!file || !task) return 0;
    struct socket *socket = socket_of_file(file);
    if (!socket) return 0;
    struct sock *sk = socket->sk;
    if (!sk || !wanted(sk)) return 0;
    struct owner owner = {};
    owner.cookie = socket_cookie(sk);
    owner.inode = file->f_inode->i_ino;
    owner.fd = context->fd;
    describe_socket(&owner.facts, sk);
    describe_task(&owner.facts.who, task);
    owner.facts.flags = HAS_PROCESS;
    owner.facts.new = sk->__sk_common.skc_state;
    seq_write(context->meta->seq, &owner, sizeof owner);
    return 0;
}

// --- the TCP sockets of a namespace that had traffic since the last walk ---------------------------
//
// No state is kept for a socket. The kernel notes when a socket last sent data (tcp_event_data_sent), received data
// (tcp_event_data_recv) and got an acknowledgement (tcp_ack), under the same lock under which it counts. A socket is reported
// if one of these times is after the beginning of the last walk: all whose counts grew, and some others. A walk begins with a
// row that has no cookie and the namespace, and ends with a row that has the number of sockets.

INLINE int recent(u32 time, u32 since, u32 now) { return now - time <= now - since; }   // in ticks, which wrap

INLINE int mark_of_walk(struct bpf_iter_meta *meta, struct walk *walk, u64 namespace) {
    struct changed row = {};
    row.net_cookie = namespace;
    row.number = walk->number;
    seq_write(meta->seq, &row, sizeof row);
    return 0;
}

SECTION("iter/tcp") int changed(struct bpf_iter__tcp *context) {
    struct bpf_iter_meta *meta = context->meta;
    struct sock *sk = (struct sock *)context->sk_common;
    u32 zero = 0, now = jiffies();
    struct walk *walk = map_lookup(&walks, &zero);
    if (!walk) return 0;
    if (!sk) return mark_of_walk(meta, walk, 0);
    if (walk->session != meta->session_id) {
        walk->session = meta->session_id;
        walk->since = walk->begun - 1;                     // one tick earlier, as that tick may have gone on
        walk->begun = now;
        walk->number = 0;
        mark_of_walk(meta, walk, sk->__sk_common.skc_net.net->net_cookie);
    }
    u32 state = 1 << (sk->__sk_common.skc_state & 31);
    if (state & NO_SOCKETS) return 0;
    struct tcp_sock *tcp = as_tcp(sk);
    if (!tcp) return 0;
    walk->number++;
    u32 received = ((struct inet_connection_sock *)tcp)->icsk_ack.lrcvtime;
    if (!(state & ON_THEIR_WAY) && !recent(tcp->rcv_tstamp, walk->since, now) && !recent(tcp->lsndtime, walk->since, now) &&
        !recent(received, walk->since, now)) return 0;
    struct changed row = {};
    row.cookie = socket_cookie(tcp);
    row.net_cookie = ((struct sock *)tcp)->__sk_common.skc_net.net->net_cookie;
    row.family = ((struct sock *)tcp)->__sk_common.skc_family;
    row.state = ((struct sock *)tcp)->__sk_common.skc_state;
    row.ifindex = ((struct sock *)tcp)->__sk_common.skc_bound_dev_if;
    row.local_port = ((struct sock *)tcp)->__sk_common.skc_num;
    row.remote_port = ((struct sock *)tcp)->__sk_common.skc_dport;
    if (row.family == INET6) {
        row.local[0] = ((struct sock *)tcp)->__sk_common.skc_v6_rcv_saddr.words[0];
        row.local[1] = ((struct sock *)tcp)->__sk_common.skc_v6_rcv_saddr.words[1];
        row.remote[0] = ((struct sock *)tcp)->__sk_common.skc_v6_daddr.words[0];
        row.remote[1] = ((struct sock *)tcp)->__sk_common.skc_v6_daddr.words[1];
    } else {
        row.local[0] = ((struct sock *)tcp)->__sk_common.skc_rcv_saddr;
        row.remote[0] = ((struct sock *)tcp)->__sk_common.skc_daddr;
    }
    seq_write(meta->seq, &row, sizeof row);
    return 0;
}

char LICENSE[] SECTION("license") = "Dual MIT/GPL";
