/* The hottest loops of the package in C. Each section is the fast version of Python code, which is the reference:
 *
 *     reports of a Darwin kernel     ntstat/_decoder.py
 *     rows of a Linux dump           sockdiag/_scan.py
 *     first rows of new sockets      sockdiag/_first_rows.py
 *     objects of frozen classes      _making.py
 *     announcements of flows         sockdiag/_flows.py
 *     JSON lines of updates          _writing.py
 *     tables of descriptors          _io/tables.py
 *     look-ups of sockets            _io/glance.py
 *     what follows a port            _io/successors.py
 *     counters of the kernel         _io/counters.py
 *
 * These functions change the same objects as the Python code does. They handle only the common cases, which the comments
 * call plain; everything else is left to Python. Between calls they keep caches only. They never read beyond the bytes
 * that they were given.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>
#ifdef __linux__
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

#if PY_VERSION_HEX >= 0x030E0000
#define HASH_BYTES(data, size) Py_HashBuffer(data, size)
#else
#define HASH_BYTES(data, size) _Py_HashBytes(data, size)
#endif

#define REVISION 2 /* of what Python calls: `REVISION` of _compiled.py */

#define HEADER_SIZE 16
#define LONGEST_IDENTITY 1024 /* most bytes of a descriptor that tell flows apart; known kernels have about 300 */
#define IDENTITY_SIZE 44      /* bytes of an inet_diag row from the family to the interface */
#define IDENTITY_AT 16
#define COOKIE_AT 60
#define REST_AT 80

static inline uint64_t read64(const uint8_t *at) { uint64_t value; memcpy(&value, at, 8); return value; }
static inline uint32_t read32(const uint8_t *at) { uint32_t value; memcpy(&value, at, 4); return value; }
static inline uint16_t read16(const uint8_t *at) { uint16_t value; memcpy(&value, at, 2); return value; }

/* --- slots of Python objects ---------------------------------------------- */

/* Find the offset of an attribute in instances of a class with __slots__. 0: found; -1: an error. */
static int find_slot(PyObject *owner, const char *name, Py_ssize_t *place)
{
    PyObject *descriptor = PyObject_GetAttrString(owner, name);
    if (descriptor == NULL)
        return -1;
    int found = Py_TYPE(descriptor) == &PyMemberDescr_Type;
    if (found)
        *place = ((PyMemberDescrObject *)descriptor)->d_member->offset;
    else
        PyErr_Format(PyExc_TypeError, "%s is no slot", name);
    Py_DECREF(descriptor);
    return found ? 0 : -1;
}

#define SLOT(object, place) (*(PyObject **)((char *)(object) + (place)))

/* Steals the reference to `value`. */
static inline void set_slot(PyObject *object, Py_ssize_t place, PyObject *value)
{
    PyObject *old = SLOT(object, place);
    SLOT(object, place) = value;
    Py_XDECREF(old);
}

/* True if two numbers are equal; mostly they are the same object. -1: an error. */
static inline int same_number(PyObject *a, PyObject *b)
{
    return a == b ? 1 : PyObject_RichCompareBool(a, b, Py_EQ);
}

/* --- reports of a Darwin kernel ------------------------------------------- */

typedef struct {
    PyObject_HEAD
    unsigned int update_type, counts_type;
    Py_ssize_t reference_at, counts_at, counts_size, counts_message, update_size;
    Py_ssize_t growing[4], wrapping_at;
    PyTypeObject *source, *event;
    Py_ssize_t is_plain, span, identity, reader, raw, totals, report, seen, flow; /* slots of a source */
    Py_ssize_t event_time, event_flow, event_report;
    PyObject *last_reader, *pieces; /* a cache: the last reader, and its attribute `pieces` */
} Reports;

static PyObject *pieces_name, *no_bytes, *zero, *minus_one;

static int Reports_init(Reports *self, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"types", "places", "growing", "source", "event", NULL};
    PyObject *source, *event;
    if (!PyArg_ParseTupleAndKeywords(
            arguments, keywords, "(II)(nnnnn)(nnnnn)O!O!", names, &self->update_type, &self->counts_type,
            &self->reference_at, &self->counts_at, &self->counts_size, &self->counts_message, &self->update_size,
            &self->growing[0], &self->growing[1], &self->growing[2], &self->growing[3], &self->wrapping_at,
            &PyType_Type, &source, &PyType_Type, &event))
        return -1;
    int whole = self->reference_at >= HEADER_SIZE && self->reference_at + 8 <= self->counts_message &&
                self->counts_at >= HEADER_SIZE && self->counts_size > 0 &&
                self->counts_at + self->counts_size <= self->counts_message &&
                self->counts_message <= self->update_size && self->wrapping_at >= 0 &&
                self->wrapping_at + 12 <= self->counts_size;
    for (int i = 0; i < 4; i++)
        whole = whole && self->growing[i] >= 0 && self->growing[i] + 8 <= self->counts_size;
    if (!whole) {
        PyErr_SetString(PyExc_ValueError, "a field lies outside its structure");
        return -1;
    }
    if (find_slot(source, "is_plain", &self->is_plain) || find_slot(source, "span", &self->span) ||
        find_slot(source, "identity", &self->identity) || find_slot(source, "reader", &self->reader) ||
        find_slot(source, "raw", &self->raw) || find_slot(source, "totals", &self->totals) ||
        find_slot(source, "report", &self->report) || find_slot(source, "seen", &self->seen) ||
        find_slot(source, "flow", &self->flow) ||
        find_slot(event, "time", &self->event_time) || find_slot(event, "flow", &self->event_flow) ||
        find_slot(event, "_details", &self->event_report))
        return -1;
    Py_XSETREF(self->source, (PyTypeObject *)Py_NewRef(source));
    Py_XSETREF(self->event, (PyTypeObject *)Py_NewRef(event));
    return 0;
}

static int Reports_traverse(Reports *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->source);
    Py_VISIT(self->event);
    Py_VISIT(self->last_reader);
    Py_VISIT(self->pieces);
    return 0;
}

static int Reports_clear(Reports *self)
{
    Py_CLEAR(self->source);
    Py_CLEAR(self->event);
    Py_CLEAR(self->last_reader);
    Py_CLEAR(self->pieces);
    return 0;
}

static void Reports_dealloc(Reports *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Reports_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

/* Compute the hash of the parts of a descriptor that tell flows apart. 1: computed; 0: left to Python; -1: an error. */
static int hash_identity(Reports *self, PyObject *reader, const uint8_t *descriptor, Py_ssize_t size, Py_hash_t *hash)
{
    uint8_t joined[LONGEST_IDENTITY];
    if (reader != self->last_reader) {
        PyObject *pieces = PyObject_GetAttr(reader, pieces_name);
        if (pieces == NULL)
            return -1;
        Py_XSETREF(self->pieces, pieces);
        Py_XSETREF(self->last_reader, Py_NewRef(reader));
    }
    if (!PyBytes_CheckExact(self->pieces))
        return 0;
    const uint8_t *piece = (const uint8_t *)PyBytes_AS_STRING(self->pieces);
    Py_ssize_t length = 0;
    for (Py_ssize_t left = PyBytes_GET_SIZE(self->pieces); left >= 8; left -= 8, piece += 8) {
        Py_ssize_t begin = read32(piece), many = read32(piece + 4);
        if (begin + many > size || length + many > LONGEST_IDENTITY)
            return 0;
        memcpy(joined + length, descriptor + begin, many);
        length += many;
    }
    *hash = HASH_BYTES(joined, length);
    return 1;
}

/* True if no 64-bit counter fell, and the 32-bit counters, which may wrap, did not change. */
static int has_grown(const Reports *self, const uint8_t *now, const uint8_t *before)
{
    for (int i = 0; i < 4; i++)
        if (read64(now + self->growing[i]) < read64(before + self->growing[i]))
            return 0;
    return memcmp(now + self->wrapping_at, before + self->wrapping_at, 12) == 0;
}

/* What an event keeps of an update: (reader, datagram, begin, end, end, nanoseconds, counters, counters before). */
static PyObject *report_of_update(PyObject *reader, PyObject *data, Py_ssize_t begin, Py_ssize_t end,
                                  PyObject *nanoseconds, PyObject *raw, PyObject *before)
{
    PyObject *first = PyLong_FromSsize_t(begin), *last = PyLong_FromSsize_t(end);
    PyObject *report = first == NULL || last == NULL
                           ? NULL
                           : PyTuple_Pack(8, reader, data, first, last, last, nanoseconds, raw, before);
    Py_XDECREF(first);
    Py_XDECREF(last);
    return report;
}

/* The same for a message that has only counters. The first six items are those of the last update if no event has had them
 * yet, and empty values otherwise (`Source.take_report`). */
static PyObject *report_of_counts(const Reports *self, PyObject *source, PyObject *reader, PyObject *raw,
                                  PyObject *before)
{
    PyObject *samples = SLOT(source, self->report);
    if (samples == Py_None)
        return PyTuple_Pack(8, reader, no_bytes, zero, zero, zero, minus_one, raw, before);
    PyObject *report = PyTuple_New(8);
    if (report == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < 6; i++)
        PyTuple_SET_ITEM(report, i, Py_NewRef(PyTuple_GET_ITEM(samples, i)));
    PyTuple_SET_ITEM(report, 6, Py_NewRef(raw));
    PyTuple_SET_ITEM(report, 7, Py_NewRef(before));
    set_slot(source, self->report, Py_NewRef(Py_None));
    return report;
}

/* Make an event without calling its constructor. Steals the reference to `report`. */
static PyObject *make_event(const Reports *self, PyObject *time, PyObject *flow, PyObject *report)
{
    if (report == NULL)
        return NULL;
    PyObject *event = self->event->tp_alloc(self->event, 0);
    if (event == NULL) {
        Py_DECREF(report);
        return NULL;
    }
    SLOT(event, self->event_time) = Py_NewRef(time);
    SLOT(event, self->event_flow) = Py_NewRef(flow);
    SLOT(event, self->event_report) = report;
    return event;
}

typedef struct {
    PyObject *sources, *serial, *time, *nanoseconds, *emit;
    int every;
    Py_ssize_t messages;
} Pass;

/* Take in the message at offset `at`. Returns the offset of its end; 0: left to Python; -1: an error. */
static Py_ssize_t take_message(Reports *self, Pass *pass, PyObject *data, Py_ssize_t at)
{
    Py_ssize_t size = PyBytes_GET_SIZE(data);
    const uint8_t *message = (const uint8_t *)PyBytes_AS_STRING(data) + at;
    if (size - at < self->counts_message || read64(message) != 0 || read16(message + 14) != 0)
        return 0;
    unsigned int type = read32(message + 8);
    Py_ssize_t length = read16(message + 12);
    int is_update = type == self->update_type;
    if ((!is_update && type != self->counts_type) || length > size - at ||
        length < (is_update ? self->update_size : self->counts_message))
        return 0;
    PyObject *key = PyLong_FromUnsignedLongLong(read64(message + self->reference_at));
    if (key == NULL)
        return -1;
    PyObject *source = PyDict_GetItemWithError(pass->sources, key);
    Py_DECREF(key);
    if (source == NULL)
        return PyErr_Occurred() ? -1 : 0;
    if (Py_TYPE(source) != self->source)
        return 0;
    PyObject *plain = SLOT(source, self->is_plain);
    if (plain != Py_True && plain != Py_None)
        return 0;
    PyObject *reader = SLOT(source, self->reader), *before = SLOT(source, self->raw);
    PyObject *samples = SLOT(source, self->report);
    if (!PyBytes_CheckExact(before) || PyBytes_GET_SIZE(before) != self->counts_size ||
        (samples != Py_None && !(PyTuple_CheckExact(samples) && PyTuple_GET_SIZE(samples) == 6)))
        return 0;
    if (is_update) {
        Py_ssize_t span = length - self->update_size;
        Py_hash_t hash = 0;
        if (PyLong_AsSsize_t(SLOT(source, self->span)) != span || !PyLong_CheckExact(SLOT(source, self->identity))) {
            PyErr_Clear();
            return 0;
        }
        int hashed = hash_identity(self, reader, message + self->update_size, span, &hash);
        if (hashed <= 0)
            return hashed;
        if (PyLong_AsSsize_t(SLOT(source, self->identity)) != hash) {
            PyErr_Clear();
            return 0;
        }
    }
    const uint8_t *old = (const uint8_t *)PyBytes_AS_STRING(before), *now = message + self->counts_at;
    int same = memcmp(old, now, self->counts_size) == 0;
    if (!same || pass->every) {
        if (plain != Py_True || (!same && !has_grown(self, now, old)))
            return 0;
        PyObject *raw = PyBytes_FromStringAndSize((const char *)now, self->counts_size);
        if (raw == NULL)
            return -1;
        Py_INCREF(source);
        Py_INCREF(reader);
        PyObject *report = is_update ? report_of_update(reader, data, at + self->update_size, at + length,
                                                        pass->nanoseconds, raw, before)
                                     : report_of_counts(self, source, reader, raw, before);
        set_slot(source, self->raw, raw); /* this may free `before` */
        set_slot(source, self->totals, Py_NewRef(Py_None));
        Py_DECREF(reader);
        PyObject *event = make_event(self, pass->time, SLOT(source, self->flow), report);
        PyObject *answer = event == NULL ? NULL : PyObject_CallOneArg(pass->emit, event);
        Py_XDECREF(event);
        if (answer == NULL) {
            Py_DECREF(source);
            return -1;
        }
        Py_DECREF(answer);
    }
    else
        Py_INCREF(source);
    if (SLOT(source, self->seen) != pass->serial)
        set_slot(source, self->seen, Py_NewRef(pass->serial));
    Py_DECREF(source);
    pass->messages++;
    return at + length;
}

PyDoc_STRVAR(take_doc, "take(datagrams, index, sources, serial, time, time_ns, every, emit)\n--\n\n"
"Take in plain reports from datagram `index` on.\n\n"
"Returns:\n    (index, offset, bytes, messages): the datagram and the offset in it at which Python has to go on,\n"
"    the size of the datagrams before it in bytes, and the number of messages taken in.");

static PyObject *Reports_take(Reports *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 8 || !PyDict_CheckExact(arguments[2])) {
        PyErr_SetString(PyExc_TypeError, "take(datagrams, index, sources, serial, time, time_ns, every, emit)");
        return NULL;
    }
    Py_ssize_t index = PyLong_AsSsize_t(arguments[1]), at = 0, bytes = 0;
    if (index < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "there is no such datagram");
        return NULL;
    }
    Pass pass = {.sources = arguments[2], .serial = arguments[3], .time = arguments[4], .nanoseconds = arguments[5],
                 .every = PyObject_IsTrue(arguments[6]), .emit = arguments[7]};
    PyObject *datagrams = PySequence_Fast(arguments[0], "datagrams are a sequence");
    if (datagrams == NULL)
        return NULL;
    for (; index < PySequence_Fast_GET_SIZE(datagrams); index++) {
        PyObject *data = Py_NewRef(PySequence_Fast_GET_ITEM(datagrams, index));
        Py_ssize_t size = PyBytes_CheckExact(data) ? PyBytes_GET_SIZE(data) : 0, end = 0;
        for (at = 0; at < size && (end = take_message(self, &pass, data, at)) > 0;)
            at = end;
        Py_DECREF(data);
        if (end < 0) {
            Py_DECREF(datagrams);
            return NULL;
        }
        if (at < size || size == 0)
            break;
        bytes += size;
        at = 0;
    }
    Py_DECREF(datagrams);
    return Py_BuildValue("(nnnn)", index, at, bytes, pass.messages);
}

/* --- rows of a Linux dump ------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Py_ssize_t length, stride, rest_size, counters_at, counters_size;
    PyTypeObject *entry;
    Py_ssize_t seen, last; /* slots of an entry */
} Rows;

/* A row of a dump: the socket's entry, and the place of a copy of the row's pieces in `Memory.bytes`. */
typedef struct {
    uint64_t head, cookie;
    PyObject *entry, *last;
    const PyTypeObject *type; /* of the entry; kept here because reading it from the entry would be a cache miss */
    size_t at;
    uint32_t rest_size, counters_size;
} Known;

/* The rows of a dump, in its order. */
typedef struct {
    Known *rows;
    size_t count, room;
} Order;

/* The rows of the previous dump and of the present one. A kernel lists its sockets in the order of its own tables. So most
 * rows of a dump follow each other as in the previous one, and can be compared without a search and with few cache misses.
 * An unchanged row is moved from `before` to `now`. */
typedef struct {
    PyObject_HEAD
    Order before, now;
    size_t next;       /* index of the row of `before` that is expected next */
    uint8_t *bytes;    /* the pieces of all rows */
    size_t size, room; /* used and allocated bytes of `bytes` */
    size_t used;       /* bytes of them that rows of `now` use */
    size_t moved;      /* number of rows moved from `before` to `now` */
} Memory;

#define LOOK_AHEAD 8  /* so many rows may be missing since the previous dump until the next one is not found */
#define FETCH_AHEAD 6 /* the entry of the row so far ahead is prefetched: entries lie anywhere in memory */

static PyTypeObject *memory_type;

static void forget_order(Order *order)
{
    for (size_t i = 0; i < order->count; i++) {
        PyObject *entry = order->rows[i].entry, *last = order->rows[i].last;
        order->rows[i].entry = order->rows[i].last = NULL;
        Py_XDECREF(entry);
        Py_XDECREF(last);
    }
    order->count = 0;
}

static int Memory_traverse(Memory *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    for (size_t i = 0; i < self->before.count; i++)
        Py_VISIT(self->before.rows[i].entry); /* NULL: the row was moved to `now` */
    for (size_t i = 0; i < self->now.count; i++)
        Py_VISIT(self->now.rows[i].entry);
    return 0; /* `last` holds only bytes and numbers, so it is in no cycle */
}

static int Memory_clear(Memory *self)
{
    forget_order(&self->before);
    forget_order(&self->now);
    return 0;
}

static void Memory_dealloc(Memory *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Memory_clear(self);
    PyMem_Free(self->before.rows);
    PyMem_Free(self->now.rows);
    PyMem_Free(self->bytes);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static inline size_t size_of(const Known *known) { return IDENTITY_SIZE + (size_t)known->rest_size + known->counters_size; }

/* Free the pieces that no row uses any more. Without memory for the copy they stay. */
static void compact(Memory *self)
{
    uint8_t *bytes = PyMem_Malloc(self->used + 1);
    if (bytes == NULL)
        return;
    size_t size = 0;
    for (size_t i = 0; i < self->before.count; i++) {
        Known *known = &self->before.rows[i];
        memcpy(bytes + size, self->bytes + known->at, size_of(known));
        known->at = size;
        size += size_of(known);
    }
    PyMem_Free(self->bytes);
    self->bytes = bytes;
    self->size = size;
    self->room = self->used + 1;
}

PyDoc_STRVAR(begin_doc, "begin()\n--\n\nAnother dump begins. It is compared with the rows of the last one.");

static PyObject *Memory_begin(Memory *self, PyObject *Py_UNUSED(nothing))
{
    Order before = self->before;
    self->before = self->now;
    self->now = (Order){0};
    self->next = 0;
    if (self->size > 2 * self->used)
        compact(self);
    size_t moved = self->moved;
    self->used = self->moved = 0;
    if (moved < before.count) /* otherwise all its rows were moved */
        forget_order(&before);
    before.count = 0;
    if (self->now.rows == NULL) /* freeing objects may have run code that used it */
        self->now = before;
    else
        PyMem_Free(before.rows);
    Py_RETURN_NONE;
}

/* Make room for one more row. */
static int make_room(Order *order)
{
    if (order->count < order->room)
        return 0;
    size_t room = order->room ? 2 * order->room : 64;
    Known *rows = PyMem_Realloc(order->rows, room * sizeof(Known));
    if (rows == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    order->rows = rows;
    order->room = room;
    return 0;
}

/* The row of the previous dump with this cookie, if it is about where it is expected; else NULL. */
static Known *find_known(const Rows *form, Memory *self, uint64_t cookie)
{
    const Order *before = &self->before;
    for (size_t i = self->next; i < before->count && i < self->next + LOOK_AHEAD; i++)
        if (before->rows[i].cookie == cookie) {
            self->next = i + 1;
            if (i + FETCH_AHEAD < before->count) { /* the two slots may be in different cache lines */
                __builtin_prefetch((char *)before->rows[i + FETCH_AHEAD].entry + form->last);
                __builtin_prefetch((char *)before->rows[i + FETCH_AHEAD].entry + form->seen, 1);
            }
            return &before->rows[i];
        }
    return NULL;
}

static int Rows_init(Rows *self, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"length", "stride", "rest_size", "counters_at", "counters_size", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "nnnnn", names, &self->length, &self->stride,
                                     &self->rest_size, &self->counters_at, &self->counters_size))
        return -1;
    if (self->length < REST_AT || self->length > self->stride || self->rest_size < 0 || self->counters_size < 0 ||
        REST_AT + self->rest_size > self->length || self->counters_at < 0 ||
        self->counters_at + self->counters_size > self->length) {
        PyErr_SetString(PyExc_ValueError, "a piece lies outside its message");
        return -1;
    }
    return 0;
}

static int Rows_traverse(Rows *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->entry);
    return 0;
}

static int Rows_clear(Rows *self)
{
    Py_CLEAR(self->entry);
    return 0;
}

static void Rows_dealloc(Rows *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Rows_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static int same_piece(PyObject *piece, const uint8_t *data, Py_ssize_t size)
{
    return PyBytes_CheckExact(piece) && PyBytes_GET_SIZE(piece) == size &&
           memcmp(PyBytes_AS_STRING(piece), data, size) == 0;
}

/* Find the slots of the entries' class, which is the same for all entries. 0: found; -1: an error. */
static int learn_entry(Rows *self, PyObject *entry)
{
    PyObject *type = (PyObject *)Py_TYPE(entry);
    if (find_slot(type, "seen", &self->seen) || find_slot(type, "last", &self->last))
        return -1;
    Py_XSETREF(self->entry, (PyTypeObject *)Py_NewRef(type));
    return 0;
}

/* True if this row has the same pieces as the last row of its socket, `last`. */
static int is_unchanged(const Rows *self, PyObject *last, PyObject *cookie, const uint8_t *row)
{
    if (!PyTuple_CheckExact(last) || PyTuple_GET_SIZE(last) != 5)
        return 0;
    PyObject *head = PyTuple_GET_ITEM(last, 0);
    return PyLong_CheckExact(head) && PyLong_AsUnsignedLongLongMask(head) == read64(row) &&
           same_piece(PyTuple_GET_ITEM(last, 1), row + IDENTITY_AT, IDENTITY_SIZE) &&
           same_number(PyTuple_GET_ITEM(last, 2), cookie) == 1 &&
           same_piece(PyTuple_GET_ITEM(last, 3), row + REST_AT, self->rest_size) &&
           same_piece(PyTuple_GET_ITEM(last, 4), row + self->counters_at, self->counters_size);
}

/* True if this row has the same pieces as in the previous dump, and nothing else has changed the entry's last row since. */
static int is_known(const Rows *self, const uint8_t *bytes, const Known *known, const uint8_t *row)
{
    if (known->head != read64(row) || known->rest_size != self->rest_size ||
        known->counters_size != self->counters_size || known->type != self->entry ||
        SLOT(known->entry, self->last) != known->last)
        return 0;
    const uint8_t *pieces = bytes + known->at;
    return memcmp(pieces, row + IDENTITY_AT, IDENTITY_SIZE) == 0 &&
           memcmp(pieces + IDENTITY_SIZE, row + REST_AT, known->rest_size) == 0 &&
           memcmp(pieces + IDENTITY_SIZE + known->rest_size, row + self->counters_at, known->counters_size) == 0;
}

/* Move an unchanged row from `before` to `now`. 0: done; -1: an error. */
static int keep(Memory *memory, Known *known)
{
    if (make_room(&memory->now) < 0)
        return -1;
    memory->now.rows[memory->now.count++] = *known;
    known->entry = known->last = NULL;
    memory->used += size_of(known);
    memory->moved++;
    return 0;
}

/* Add a row of the present dump, whose pieces are the last ones of its entry, to `now`. 0: done; -1: an error. */
static int remember(const Rows *self, Memory *memory, PyObject *entry, const uint8_t *row)
{
    Known known = {.head = read64(row),
                   .cookie = read64(row + COOKIE_AT),
                   .type = Py_TYPE(entry),
                   .at = memory->size,
                   .rest_size = (uint32_t)self->rest_size,
                   .counters_size = (uint32_t)self->counters_size};
    if (make_room(&memory->now) < 0)
        return -1;
    if (memory->room - memory->size < size_of(&known)) {
        size_t room = 2 * (memory->room + size_of(&known));
        uint8_t *bytes = PyMem_Realloc(memory->bytes, room);
        if (bytes == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        memory->bytes = bytes;
        memory->room = room;
    }
    uint8_t *pieces = memory->bytes + memory->size;
    memcpy(pieces, row + IDENTITY_AT, IDENTITY_SIZE);
    memcpy(pieces + IDENTITY_SIZE, row + REST_AT, known.rest_size);
    memcpy(pieces + IDENTITY_SIZE + known.rest_size, row + self->counters_at, known.counters_size);
    memory->size += size_of(&known);
    memory->used += size_of(&known);
    known.entry = Py_NewRef(entry);
    known.last = Py_NewRef(SLOT(entry, self->last));
    memory->now.rows[memory->now.count++] = known;
    return 0;
}

/* Hand a new or changed row to the book. 0: done; -1: an error. */
static int apply_row(const Rows *self, PyObject *apply, PyObject *entry, PyObject *protocol, PyObject *cookie,
                     const uint8_t *row, PyObject *form)
{
    PyObject *pieces = Py_BuildValue("Ky#Oy#y#", (unsigned long long)read64(row), row + IDENTITY_AT,
                                     (Py_ssize_t)IDENTITY_SIZE, cookie, row + REST_AT, self->rest_size,
                                     row + self->counters_at, self->counters_size);
    if (pieces != NULL)
        PyObject_GC_UnTrack(pieces); /* it holds only bytes and numbers, so it is in no cycle */
    PyObject *message = PyBytes_FromStringAndSize((const char *)row, self->length);
    PyObject *given[] = {entry, protocol, pieces, message, form};
    PyObject *answer = pieces == NULL || message == NULL ? NULL : PyObject_Vectorcall(apply, given, 5, NULL);
    Py_XDECREF(pieces);
    Py_XDECREF(message);
    Py_XDECREF(answer);
    return answer == NULL ? -1 : 0;
}

/* Take in a row that `find_known` and `is_known` do not know: mark its entry as seen, or hand it to the book. -1: an error. */
static int take_row(Rows *self, PyObject *const *arguments, int every, Memory *memory, const uint8_t *row)
{
    PyObject *entries = arguments[2], *poll = arguments[3];
    PyObject *cookie = PyLong_FromUnsignedLongLong(read64(row + COOKIE_AT));
    PyObject *entry = cookie == NULL ? NULL : PyDict_GetItemWithError(entries, cookie);
    int failed = entry == NULL && PyErr_Occurred() != NULL;
    if (!failed && entry != NULL && Py_TYPE(entry) != self->entry)
        failed = learn_entry(self, entry) < 0;
    if (!failed && (entry == NULL || every || !is_unchanged(self, SLOT(entry, self->last), cookie, row))) {
        PyObject *given = Py_NewRef(entry == NULL ? Py_None : entry);
        failed = apply_row(self, arguments[5], given, arguments[6], cookie, row, arguments[7]) < 0;
        Py_DECREF(given);
        entry = failed || memory == NULL ? NULL : PyDict_GetItemWithError(entries, cookie);
        failed = failed || (entry == NULL && PyErr_Occurred() != NULL);
    }
    else if (!failed && SLOT(entry, self->seen) != poll)
        set_slot(entry, self->seen, Py_NewRef(poll));
    if (!failed && entry != NULL && Py_TYPE(entry) != self->entry) /* the first entry of all */
        failed = learn_entry(self, entry) < 0;
    if (!failed && memory != NULL && entry != NULL && is_unchanged(self, SLOT(entry, self->last), cookie, row))
        failed = remember(self, memory, entry, row) < 0;
    Py_XDECREF(cookie);
    return failed ? -1 : 0;
}

PyDoc_STRVAR(scan_doc, "scan(datagrams, index, offset, entries, poll, every, apply, protocol, form, memory)\n--\n\n"
"Take in the row at `offset` of a datagram, and those after it that begin alike, also in later datagrams.\n\n"
"Args:\n    memory: The `Memory` of this dump, or `None`.\n\n"
"Returns:\n    (index, offset, rows): the place after them, and their number.");

/* Take in the rows of one datagram, from `offset` on, that begin alike. 0: done; -1: an error. */
static int take_rows(Rows *self, PyObject *const *arguments, int every, Memory *memory, const uint8_t *data,
                     Py_ssize_t size, Py_ssize_t *offset)
{
    PyObject *poll = arguments[3];
    uint64_t head = read64(data + *offset);
    for (; size - *offset >= self->stride && read64(data + *offset) == head; *offset += self->stride) {
        const uint8_t *row = data + *offset;
        Known *known = memory == NULL ? NULL : find_known(self, memory, read64(row + COOKIE_AT));
        int failed;
        if (known != NULL && is_known(self, memory->bytes, known, row)) {
            if (SLOT(known->entry, self->seen) != poll)
                set_slot(known->entry, self->seen, Py_NewRef(poll));
            failed = keep(memory, known) < 0;
        }
        else
            failed = take_row(self, arguments, every, memory, row) < 0;
        if (failed)
            return -1;
    }
    return 0;
}

/* True if a datagram begins like this row of the one before, so that it continues the same answer. */
static int goes_on(PyObject *datagram, const uint8_t *row)
{
    return PyBytes_CheckExact(datagram) && PyBytes_GET_SIZE(datagram) >= 12 &&
           memcmp(PyBytes_AS_STRING(datagram), row, 12) == 0;
}

static PyObject *Rows_scan(Rows *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 10 || !PyTuple_CheckExact(arguments[0]) || !PyDict_CheckExact(arguments[3]) ||
        (arguments[9] != Py_None && Py_TYPE(arguments[9]) != memory_type)) {
        PyErr_SetString(PyExc_TypeError, "scan(datagrams, index, offset, entries, poll, every, apply, protocol, form, memory)");
        return NULL;
    }
    PyObject *datagrams = arguments[0];
    Py_ssize_t index = PyLong_AsSsize_t(arguments[1]), offset = PyLong_AsSsize_t(arguments[2]), rows = 0;
    int every = PyObject_IsTrue(arguments[5]);
    Memory *memory = every || arguments[9] == Py_None ? NULL : (Memory *)arguments[9];
    if (PyErr_Occurred())
        return NULL;
    if (index < 0 || index >= PyTuple_GET_SIZE(datagrams) || !PyBytes_CheckExact(PyTuple_GET_ITEM(datagrams, index))) {
        PyErr_SetString(PyExc_ValueError, "there is no such datagram");
        return NULL;
    }
    for (;; index++, offset = 0) {
        PyObject *datagram = PyTuple_GET_ITEM(datagrams, index);
        const uint8_t *data = (const uint8_t *)PyBytes_AS_STRING(datagram);
        Py_ssize_t size = PyBytes_GET_SIZE(datagram), begin = offset;
        if (begin < 0 || begin > size || size - begin < 12) {
            PyErr_SetString(PyExc_ValueError, "there is no row at this offset");
            return NULL;
        }
        if (take_rows(self, arguments + 1, every, memory, data, size, &offset) < 0)
            return NULL;
        rows += (offset - begin) / self->stride;
        if (offset < size || index + 1 == PyTuple_GET_SIZE(datagrams) ||
            !goes_on(PyTuple_GET_ITEM(datagrams, index + 1), data + begin))
            return Py_BuildValue("(nnn)", index, offset, rows);
    }
}

/* --- first rows of new sockets -------------------------------------------- */

#define TCP 6
#define TIMER_TIME_WAIT 3
#define CGROUP_HEADER "\x0c\x00\x15\x00" /* length and INET_DIAG_CGROUP_ID, little-endian; on other machines Python finds it */
#define SENT_END 216                     /* the end of tcpi_bytes_retrans in tcp_info */

typedef struct {
    PyObject_HEAD
    PyTypeObject *entry, *report, *form;
    Py_ssize_t *places; /* slots of an entry, in the order of `defaults` */
    PyObject *defaults, *python, *accepted, *opened, *sequence;
    unsigned int behind_fin, before_fin, after_fin, told_by_state, remains; /* sets of states */
    Py_ssize_t keeper, protocol, last, seen, changed, state, reading, of_report, direction, weight, cgroup; /* slots of an entry */
    Py_ssize_t over, preexisting;
    Py_ssize_t values;                                    /* slot of a report */
    Py_ssize_t info, info_length, info_header, of_cgroup; /* slots of a form */
} EntryMaker;

static int find_slots_of_entry_maker(EntryMaker *self)
{
    PyObject *entry = (PyObject *)self->entry, *form = (PyObject *)self->form;
    return find_slot(entry, "keeper", &self->keeper) || find_slot(entry, "protocol", &self->protocol) ||
           find_slot(entry, "last", &self->last) || find_slot(entry, "seen", &self->seen) ||
           find_slot(entry, "changed", &self->changed) || find_slot(entry, "state", &self->state) ||
           find_slot(entry, "reading", &self->reading) || find_slot(entry, "report", &self->of_report) ||
           find_slot(entry, "direction", &self->direction) || find_slot(entry, "weight", &self->weight) ||
           find_slot(entry, "cgroup", &self->cgroup) || find_slot(entry, "over", &self->over) ||
           find_slot(entry, "preexisting", &self->preexisting) || find_slot((PyObject *)self->report, "_values", &self->values) ||
           find_slot(form, "info", &self->info) ||
           find_slot(form, "info_length", &self->info_length) || find_slot(form, "info_header", &self->info_header) ||
           find_slot(form, "cgroup", &self->of_cgroup);
}

static int EntryMaker_init(EntryMaker *self, PyObject *arguments, PyObject *Py_UNUSED(keywords))
{
    PyObject *entry, *report, *form, *names, *defaults, *accepted, *opened, *sequence, *python;
    if (!PyArg_ParseTuple(arguments, "(O!O!O!)O!O!(IIIII)(OOO)O", &PyType_Type, &entry, &PyType_Type, &report,
                          &PyType_Type, &form, &PyTuple_Type, &names, &PyTuple_Type, &defaults, &self->behind_fin,
                          &self->before_fin, &self->after_fin, &self->told_by_state, &self->remains, &accepted,
                          &opened, &sequence, &python))
        return -1;
    Py_ssize_t count = PyTuple_GET_SIZE(names);
    if (self->entry != NULL || count != PyTuple_GET_SIZE(defaults)) {
        PyErr_SetString(PyExc_ValueError, "other values than slots, or made twice");
        return -1;
    }
    self->places = PyMem_New(Py_ssize_t, count + 1);
    if (self->places == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    self->entry = (PyTypeObject *)Py_NewRef(entry);
    self->report = (PyTypeObject *)Py_NewRef(report);
    self->form = (PyTypeObject *)Py_NewRef(form);
    self->defaults = Py_NewRef(defaults);
    self->python = Py_NewRef(python);
    self->accepted = Py_NewRef(accepted);
    self->opened = Py_NewRef(opened);
    self->sequence = Py_NewRef(sequence);
    for (Py_ssize_t i = 0; i < count; i++) {
        const char *name = PyUnicode_AsUTF8(PyTuple_GET_ITEM(names, i));
        if (name == NULL || find_slot(entry, name, &self->places[i]))
            return -1;
    }
    return find_slots_of_entry_maker(self) ? -1 : 0;
}

static int EntryMaker_traverse(EntryMaker *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->entry);
    Py_VISIT(self->report);
    Py_VISIT(self->form);
    Py_VISIT(self->defaults);
    Py_VISIT(self->python);
    Py_VISIT(self->accepted);
    Py_VISIT(self->opened);
    Py_VISIT(self->sequence);
    return 0;
}

static int EntryMaker_clear(EntryMaker *self)
{
    Py_CLEAR(self->entry);
    Py_CLEAR(self->report);
    Py_CLEAR(self->form);
    Py_CLEAR(self->defaults);
    Py_CLEAR(self->python);
    Py_CLEAR(self->accepted);
    Py_CLEAR(self->opened);
    Py_CLEAR(self->sequence);
    return 0;
}

static void EntryMaker_dealloc(EntryMaker *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    EntryMaker_clear(self);
    PyMem_Free(self->places);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static inline int is_one_of(unsigned int state, unsigned int states) { return state < 32 && states >> state & 1; }

/* The direction of a connection by its sequence numbers, as in `evidence_of`. NULL: not certain, so left to Python. */
static PyObject *direction_by_numbers(const EntryMaker *self, const uint8_t *row, const uint8_t *info, Py_ssize_t length,
                                      PyObject *listening)
{
    const unsigned int state = row[IDENTITY_AT + 1];
    if (length < SENT_END || info[0] != state || is_one_of(state, self->told_by_state) ||
        !read16(row + IDENTITY_AT + 6))
        return NULL;
    const uint32_t flying = read32(info + 24), again = read32(info + 100), waiting = read32(info + 144);
    const uint32_t delivered = read32(info + 192), queue = read32(row + 76);
    const uint64_t extra = read64(info + 120) + queue - waiting - (read64(info + 200) - read64(info + 208));
    PyObject *found = NULL;
    if (extra > 2)
        return NULL;
    if (is_one_of(state, self->before_fin)) {
        if (extra)
            found = self->opened;
        else if (delivered && (again || (uint64_t)delivered + flying != read32(info + 156)))
            found = self->accepted;
    }
    else if (is_one_of(state, self->after_fin) && !waiting && extra)
        found = extra == 2 ? self->opened : self->accepted;
    else if (extra != 1)
        found = extra ? self->opened : self->accepted;
    if (found != self->opened)
        return found;
    PyObject *port = PyBytes_FromStringAndSize((const char *)row + IDENTITY_AT + 4, 2);
    const int listens = port == NULL ? -1 : PyDict_Contains(listening, port);
    Py_XDECREF(port);
    return listens == 0 ? found : NULL;
}

static PyObject *make_entry(const EntryMaker *self)
{
    PyObject *entry = self->entry->tp_alloc(self->entry, 0);
    for (Py_ssize_t i = 0; entry != NULL && i < PyTuple_GET_SIZE(self->defaults); i++)
        SLOT(entry, self->places[i]) = Py_NewRef(PyTuple_GET_ITEM(self->defaults, i));
    return entry;
}

/* Steals the reference to `values`. */
static PyObject *make_report(const EntryMaker *self, PyObject *values)
{
    PyObject *report = values == NULL ? NULL : self->report->tp_alloc(self->report, 0);
    if (report == NULL) {
        Py_XDECREF(values);
        return NULL;
    }
    SLOT(report, self->values) = values;
    PyObject_GC_UnTrack(values); /* it holds only bytes and numbers, so it is in no cycle */
    PyObject_GC_UnTrack(report);
    return report;
}

/* Find tcp_info and the cgroup where the form of the row says that they are. 0: they are not there, so left to Python. */
static int is_as_expected(const EntryMaker *self, PyObject *pieces, PyObject *message, PyObject *form, Py_ssize_t *info,
                          Py_ssize_t *length, Py_ssize_t *cgroup)
{
    if (Py_TYPE(form) != self->form || !PyTuple_CheckExact(pieces) || PyTuple_GET_SIZE(pieces) != 5 ||
        !PyBytes_CheckExact(message))
        return 0;
    PyObject *header = SLOT(form, self->info_header);
    const Py_ssize_t size = PyBytes_GET_SIZE(message);
    *info = PyLong_AsSsize_t(SLOT(form, self->info));
    *length = PyLong_AsSsize_t(SLOT(form, self->info_length));
    *cgroup = PyLong_AsSsize_t(SLOT(form, self->of_cgroup));
    const char *row = PyBytes_AS_STRING(message);
    return PyBytes_CheckExact(header) && PyBytes_GET_SIZE(header) == 4 && *info >= REST_AT + 12 && *length > 0 &&
           *length <= size - *info && memcmp(row + *info - 4, PyBytes_AS_STRING(header), 4) == 0 &&
           *cgroup >= REST_AT + 12 && *cgroup + 8 <= size && memcmp(row + *cgroup - 4, CGROUP_HEADER, 4) == 0;
}

/* True if a sum of these counters could exceed 64 bits. */
static int are_large(const uint8_t *info, Py_ssize_t length)
{
    return length >= SENT_END && (read64(info + 120) | read64(info + 200) | read64(info + 208)) >> 62;
}

/* Make the entry of a socket from its first row. The arguments are those of `_make_entry`: (keeper, protocol, pieces,
 * message, form, poll, reading, listening). NULL without an error: left to Python; with `sure` also if the direction of the
 * connection is not certain. */
static PyObject *see(const EntryMaker *self, PyObject *const *arguments, int sure)
{
    Py_ssize_t start, length, cgroup;
    PyObject *pieces = arguments[2], *message = arguments[3], *listening = arguments[7];
    if (PyLong_AsLong(arguments[1]) != TCP || !PyDict_CheckExact(listening) ||
        !is_as_expected(self, pieces, message, arguments[4], &start, &length, &cgroup) ||
        are_large((const uint8_t *)PyBytes_AS_STRING(message) + start, length)) {
        PyErr_Clear();
        return NULL;
    }
    const uint8_t *row = (const uint8_t *)PyBytes_AS_STRING(message), *info = row + start;
    const unsigned int state = row[IDENTITY_AT + 1];
    PyObject *direction = direction_by_numbers(self, row, info, length, listening);
    if (PyErr_Occurred() || (sure && direction == NULL))
        return NULL;
    const int alone = length >= 160 && read64(info + 128) == 1 && read32(info + 152) == 0;
    const int fin = alone || is_one_of(state, self->behind_fin) || is_one_of(info[0], self->behind_fin);
    PyObject *report = make_report(self, Py_BuildValue("(Onni)", message, start, length, fin));
    PyObject *number = PyLong_FromUnsignedLongLong(read64(row + cgroup));
    PyObject *entry = report == NULL || number == NULL ? NULL : make_entry(self);
    if (entry == NULL) {
        Py_XDECREF(report);
        Py_XDECREF(number);
        return NULL;
    }
    set_slot(entry, self->keeper, Py_NewRef(arguments[0]));
    set_slot(entry, self->protocol, Py_NewRef(arguments[1]));
    set_slot(entry, self->last, Py_NewRef(pieces));
    set_slot(entry, self->seen, Py_NewRef(arguments[5]));
    set_slot(entry, self->changed, Py_NewRef(arguments[5]));
    set_slot(entry, self->state, PyLong_FromLong((long)state)); /* small numbers always exist, so this cannot fail */
    set_slot(entry, self->reading, Py_NewRef(arguments[6]));
    set_slot(entry, self->of_report, report);
    set_slot(entry, self->cgroup, number);
    if (direction != NULL) {
        set_slot(entry, self->direction, Py_NewRef(direction));
        set_slot(entry, self->weight, Py_NewRef(self->sequence));
    }
    PyObject_GC_UnTrack(entry); /* it holds only values and a weak reference to its book, so it is in no cycle */
    return entry;
}

PyDoc_STRVAR(take_entry_maker_doc, "take(keeper, protocol, pieces, message, form, poll, reading, listening)\n--\n\n"
                                   "As `_make_entry` of sockdiag/_first_rows.py.");

static PyObject *EntryMaker_take(EntryMaker *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (self->entry == NULL || count != 8) {
        PyErr_SetString(PyExc_TypeError, "take(keeper, protocol, pieces, message, form, poll, reading, listening)");
        return NULL;
    }
    PyObject *entry = see(self, arguments, 0);
    return entry != NULL || PyErr_Occurred() ? entry : PyObject_Vectorcall(self->python, arguments, 8, NULL);
}

PyDoc_STRVAR(apply_entry_maker_doc, "apply((keeper, entries, listening, new, python), poll, reading, entry, protocol, pieces, "
                              "message, form)\n--\n\n"
                              "As `Book.take_row` in the first poll. Rows that are not plain are handed to `python`, which is that method.");

static PyObject *EntryMaker_apply(EntryMaker *self, PyObject *const *arguments, Py_ssize_t count)
{
    PyObject *book = count == 8 ? arguments[0] : NULL;
    if (self->entry == NULL || book == NULL || !PyTuple_CheckExact(book) || PyTuple_GET_SIZE(book) != 5 ||
        !PyDict_CheckExact(PyTuple_GET_ITEM(book, 1)) || !PyList_CheckExact(PyTuple_GET_ITEM(book, 3))) {
        PyErr_SetString(PyExc_TypeError, "apply((keeper, entries, listening, new, python), poll, reading, entry, "
                                         "protocol, pieces, message, form)");
        return NULL;
    }
    PyObject *pieces = arguments[5], *message = arguments[6], *entry = NULL;
    const char *row = PyBytes_CheckExact(message) && PyBytes_GET_SIZE(message) >= REST_AT ? PyBytes_AS_STRING(message) : NULL;
    if (arguments[3] == Py_None && row != NULL && row[IDENTITY_AT + 2] != TIMER_TIME_WAIT &&
        (row[IDENTITY_AT + 4] || row[IDENTITY_AT + 5]) && /* a connection that was just closed has given back its port */
        !is_one_of((uint8_t)row[IDENTITY_AT + 1], self->remains)) {
        PyObject *given[] = {PyTuple_GET_ITEM(book, 0), arguments[4], pieces, message, arguments[7],
                             arguments[1], arguments[2], PyTuple_GET_ITEM(book, 2)};
        entry = see(self, given, 1);
        if (entry == NULL && PyErr_Occurred())
            return NULL;
    }
    if (entry == NULL)
        return PyObject_Vectorcall(PyTuple_GET_ITEM(book, 4), arguments + 3, 5, NULL);
    set_slot(entry, self->over, Py_NewRef(Py_False));
    set_slot(entry, self->preexisting, Py_NewRef(Py_True));
    const int failed = PyDict_SetItem(PyTuple_GET_ITEM(book, 1), PyTuple_GET_ITEM(pieces, 2), entry) < 0 ||
                       PyList_Append(PyTuple_GET_ITEM(book, 3), entry) < 0;
    Py_DECREF(entry);
    return failed ? NULL : Py_NewRef(Py_None);
}

/* --- objects of frozen classes, made without their constructor ------------ */

typedef struct {
    PyObject_HEAD
    PyTypeObject *owner;
    Py_ssize_t *places;
    Py_ssize_t given; /* a call gives the values of this many slots, the first ones */
    PyObject *rest;   /* the values of the other slots, which are always the same */
} Maker;

static int Maker_init(Maker *self, PyObject *arguments, PyObject *keywords)
{
    static char *keys[] = {"owner", "names", "rest", NULL};
    PyObject *owner, *names, *rest;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!O!O!", keys, &PyType_Type, &owner, &PyTuple_Type, &names,
                                     &PyTuple_Type, &rest))
        return -1;
    Py_ssize_t count = PyTuple_GET_SIZE(names), given = count - PyTuple_GET_SIZE(rest);
    if (given < 0 || self->owner != NULL) {
        PyErr_SetString(PyExc_ValueError, "more values than slots, or made twice");
        return -1;
    }
    self->places = PyMem_New(Py_ssize_t, count + 1);
    if (self->places == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        const char *name = PyUnicode_AsUTF8(PyTuple_GET_ITEM(names, i));
        if (name == NULL || find_slot(owner, name, &self->places[i]) < 0)
            return -1;
    }
    self->given = given;
    self->rest = Py_NewRef(rest);
    self->owner = (PyTypeObject *)Py_NewRef(owner);
    return 0;
}

static int Maker_traverse(Maker *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->owner);
    Py_VISIT(self->rest);
    return 0;
}

static int Maker_clear(Maker *self)
{
    Py_CLEAR(self->owner);
    Py_CLEAR(self->rest);
    return 0;
}

static void Maker_dealloc(Maker *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Maker_clear(self);
    PyMem_Free(self->places);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

PyDoc_STRVAR(make_doc, "make(*values)\n--\n\nAn object with these values in its first slots. The garbage collector does "
"not visit it:\nit holds only values, so it is in no cycle.");

static PyObject *Maker_make(Maker *self, PyObject *const *values, Py_ssize_t count)
{
    if (self->owner == NULL || count != self->given) {
        PyErr_Format(PyExc_TypeError, "make() takes %zd values, not %zd", self->given, count);
        return NULL;
    }
    PyObject *made = self->owner->tp_alloc(self->owner, 0);
    if (made == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < count; i++)
        SLOT(made, self->places[i]) = Py_NewRef(values[i]);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(self->rest); i++)
        SLOT(made, self->places[count + i]) = Py_NewRef(PyTuple_GET_ITEM(self->rest, i));
    PyObject_GC_UnTrack(made);
    return made;
}

PyDoc_STRVAR(fill_doc, "fill(made, *values)\n--\n\nSet the slots of an object of a subclass, and change its class to the owner.");

static PyObject *Maker_fill(Maker *self, PyObject *const *values, Py_ssize_t count)
{
    if (self->owner == NULL || count != self->given + 1 || !PyObject_TypeCheck(values[0], self->owner) ||
        Py_TYPE(values[0])->tp_basicsize != self->owner->tp_basicsize) {
        PyErr_Format(PyExc_TypeError, "fill() takes an object of a subclass and %zd values", self->given);
        return NULL;
    }
    PyObject *made = values[0];
    for (Py_ssize_t i = 0; i < self->given; i++)
        set_slot(made, self->places[i], Py_NewRef(values[i + 1]));
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(self->rest); i++)
        set_slot(made, self->places[self->given + i], Py_NewRef(PyTuple_GET_ITEM(self->rest, i)));
    PyTypeObject *before = Py_TYPE(made);
    Py_INCREF(self->owner);
    Py_SET_TYPE(made, self->owner);
    Py_DECREF(before);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(gather_doc, "gather(*values)\n--\n\nAn object whose first slot has a tuple of these values; otherwise as `make`.");

static PyObject *Maker_gather(Maker *self, PyObject *const *values, Py_ssize_t count)
{
    PyObject *gathered = PyTuple_New(count);
    if (gathered == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < count; i++)
        PyTuple_SET_ITEM(gathered, i, Py_NewRef(values[i]));
    PyObject *made = Maker_make(self, &gathered, 1);
    if (made != NULL && count > 0) /* the empty tuple is shared by the whole process */
        PyObject_GC_UnTrack(gathered);
    Py_DECREF(gathered);
    return made;
}

/* --- announcements of flows ----------------------------------------------- */

#define SCOPED 0xfe /* addresses that are valid on one link only have a first byte of at least this */
#define AF_INET6_ 10

typedef struct {
    PyObject_HEAD
    PyTypeObject *entry;
    PyObject *flows, *events, *nobody; /* makers of flows and events; the value of `others` without other holders */
    Py_ssize_t last, owner, cgroup, connection, protocol, state, direction, others, flow, over, report, preexisting;
} Announcer;

static PyTypeObject *maker_type;

static int Announcer_init(Announcer *self, PyObject *arguments, PyObject *Py_UNUSED(keywords))
{
    PyObject *entry, *flows, *events, *nobody;
    if (!PyArg_ParseTuple(arguments, "O!O!O!O", &PyType_Type, &entry, maker_type, &flows, maker_type, &events, &nobody))
        return -1;
    if (self->entry != NULL || ((Maker *)flows)->given != 1 || ((Maker *)events)->given != 5) {
        PyErr_SetString(PyExc_ValueError, "makers of other values, or made twice");
        return -1;
    }
    if (find_slot(entry, "last", &self->last) || find_slot(entry, "owner", &self->owner) ||
        find_slot(entry, "cgroup", &self->cgroup) || find_slot(entry, "connection", &self->connection) ||
        find_slot(entry, "protocol", &self->protocol) || find_slot(entry, "state", &self->state) ||
        find_slot(entry, "direction", &self->direction) || find_slot(entry, "others", &self->others) ||
        find_slot(entry, "flow", &self->flow) || find_slot(entry, "over", &self->over) ||
        find_slot(entry, "report", &self->report) || find_slot(entry, "preexisting", &self->preexisting))
        return -1;
    self->entry = (PyTypeObject *)Py_NewRef(entry);
    self->flows = Py_NewRef(flows);
    self->events = Py_NewRef(events);
    self->nobody = Py_NewRef(nobody);
    return 0;
}

static int Announcer_traverse(Announcer *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->entry);
    Py_VISIT(self->flows);
    Py_VISIT(self->events);
    Py_VISIT(self->nobody);
    return 0;
}

static int Announcer_clear(Announcer *self)
{
    Py_CLEAR(self->entry);
    Py_CLEAR(self->flows);
    Py_CLEAR(self->events);
    Py_CLEAR(self->nobody);
    return 0;
}

static void Announcer_dealloc(Announcer *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Announcer_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

/* The interface of a socket's packets, from a cache by its identity without the ports. NULL: not in the cache. */
static PyObject *remembered_interface(PyObject *interfaces, const uint8_t *identity)
{
    PyObject *key = Py_BuildValue("(iy#)", (int)identity[0], identity + 8, (Py_ssize_t)IDENTITY_SIZE - 8);
    PyObject *found = key == NULL ? NULL : PyDict_GetItemWithError(interfaces, key);
    Py_XDECREF(key);
    return found;
}

/* Make the flow of a socket, as `build_flow` does. NULL without an error: not plain, so left to Python. */
static PyObject *plain_flow(const Announcer *self, PyObject *entry, PyObject *const *about, PyObject *nothing)
{
    PyObject *last = SLOT(entry, self->last);
    if (SLOT(entry, self->others) != self->nobody || !PyTuple_CheckExact(last) || PyTuple_GET_SIZE(last) != 5)
        return NULL;
    PyObject *identity = PyTuple_GET_ITEM(last, 1);
    if (!PyBytes_CheckExact(identity) || PyBytes_GET_SIZE(identity) != IDENTITY_SIZE)
        return NULL;
    const uint8_t *row = (const uint8_t *)PyBytes_AS_STRING(identity);
    if (row[0] == AF_INET6_ && (row[8] >= SCOPED || row[24] >= SCOPED))
        return NULL;
    PyObject *place = PyDict_GetItemWithError(about[2], SLOT(entry, self->cgroup));
    PyObject *interface = place == NULL || place == Py_None ? NULL : remembered_interface(about[3], row);
    if (interface == NULL)
        return NULL;
    PyObject *values[] = {about[0], PyTuple_GET_ITEM(last, 2), SLOT(entry, self->connection),
                          SLOT(entry, self->protocol), SLOT(entry, self->state), identity, Py_None,
                          SLOT(entry, self->owner), interface, SLOT(entry, self->direction), about[1], place, Py_None,
                          nothing};
    return Maker_gather((Maker *)self->flows, values, 14);
}

static int announce_plainly(const Announcer *self, PyObject *entry, PyObject *flow, PyObject *time, PyObject *events)
{
    PyObject *report = SLOT(entry, self->report);
    PyObject *values[] = {time, flow, report, SLOT(entry, self->preexisting), report};
    set_slot(entry, self->flow, Py_NewRef(flow));
    PyObject *event = Maker_make((Maker *)self->events, values, 5);
    const int failed = event == NULL || PyList_Append(events, event) < 0;
    Py_XDECREF(event);
    return failed ? -1 : 0;
}

PyDoc_STRVAR(announce_doc, "announce(entries, prefix, namespace, places, interfaces, time, events, python)\n--\n\n"
                           "As `Book._announce_all` of sockdiag/_book.py. Entries that are not plain are handed to `python`.");

static PyObject *Announcer_announce(Announcer *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (self->entry == NULL || count != 8 || !PyList_CheckExact(arguments[0]) || !PyDict_CheckExact(arguments[3]) ||
        !PyDict_CheckExact(arguments[4]) || !PyList_CheckExact(arguments[6])) {
        PyErr_SetString(PyExc_TypeError, "announce(entries, prefix, namespace, places, interfaces, time, events, python)");
        return NULL;
    }
    PyObject *nothing = PyTuple_New(0);
    Py_ssize_t done = 0;
    for (Py_ssize_t i = 0; nothing != NULL && i < PyList_GET_SIZE(arguments[0]); i++) {
        PyObject *entry = Py_NewRef(PyList_GET_ITEM(arguments[0], i)), *flow = NULL, *answer = Py_None;
        const int plain = Py_TYPE(entry) == self->entry;
        if (plain && (SLOT(entry, self->over) != Py_False || SLOT(entry, self->flow) != Py_None)) {
            Py_DECREF(entry);
            continue;
        }
        if (plain)
            flow = plain_flow(self, entry, arguments + 1, nothing);
        if (flow != NULL)
            answer = announce_plainly(self, entry, flow, arguments[5], arguments[6]) < 0 ? NULL : Py_NewRef(Py_None);
        else
            answer = PyErr_Occurred() ? NULL : PyObject_CallOneArg(arguments[7], entry);
        Py_XDECREF(flow);
        Py_DECREF(entry);
        if (answer == NULL)
            Py_CLEAR(nothing);
        Py_XDECREF(answer);
        done++;
    }
    if (nothing == NULL)
        return NULL;
    Py_DECREF(nothing);
    return PyLong_FromSsize_t(done);
}

PyDoc_STRVAR(flows_doc, "flows(entries)\n--\n\nThe flows that were announced, each with its report. The garbage collector does not "
                        "visit the\npairs: they hold only values.");

static PyObject *Announcer_flows(Announcer *self, PyObject *entries)
{
    PyObject *found = PyList_New(0), *iterator = found == NULL ? NULL : PyObject_GetIter(entries), *entry;
    while (iterator != NULL && self->entry != NULL && (entry = PyIter_Next(iterator)) != NULL) {
        PyObject *pair = NULL;
        if (Py_TYPE(entry) != self->entry)
            PyErr_SetString(PyExc_TypeError, "not one of the entries");
        else if (SLOT(entry, self->flow) != Py_None && (pair = PyTuple_Pack(2, SLOT(entry, self->flow), SLOT(entry, self->report))) != NULL) {
            PyObject_GC_UnTrack(pair);
            PyList_Append(found, pair); /* an error is found below, by PyErr_Occurred */
            Py_DECREF(pair);
        }
        Py_DECREF(entry);
        if (PyErr_Occurred())
            break;
    }
    Py_XDECREF(iterator);
    if (PyErr_Occurred())
        Py_CLEAR(found);
    return found;
}

/* --- JSON lines of updates ------------------------------------------------ */

typedef struct {
    char *bytes;
    size_t size, room;
} Written;

#define LONGEST_TEXT (1 << 15) /* bytes after which no further line is begun: larger blocks are returned to the system each time */
#define MOST_KEPT (1 << 18)    /* most bytes of the buffer that is kept between calls */

typedef struct {
    PyObject_HEAD
    PyTypeObject *event, *flow, *kept;
    Py_ssize_t event_time, event_flow, event_report, flow_id;
    Py_ssize_t kept_flow, kept_text, kept_reader, kept_program;
    Written written;
    double time; /* a cache: the last time, and its text */
    char time_text[32];
} Lines;

/* A piece of a compiled line (`_Piece` of _writing.py): this head, then the text before the value. */
typedef struct {
    uint16_t kind, offset, parts, sample, length;
} Piece;

enum { LINE_END, LINE_TIME, LINE_FLOW, LINE_LONG, LINE_SHORT, LINE_MILLISECONDS, LINE_GROWN };
#define LONGEST_NUMBER 20
#define SHORT_TEXT 32

static int Lines_init(Lines *self, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"event", "flow", "kept", NULL};
    PyObject *event, *flow, *kept;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!O!O!", names, &PyType_Type, &event, &PyType_Type, &flow,
                                     &PyType_Type, &kept) ||
        find_slot(event, "time", &self->event_time) || find_slot(event, "flow", &self->event_flow) ||
        find_slot(event, "_details", &self->event_report) || find_slot(flow, "id", &self->flow_id) ||
        find_slot(kept, "flow", &self->kept_flow) || find_slot(kept, "text", &self->kept_text) ||
        find_slot(kept, "reader", &self->kept_reader) || find_slot(kept, "program", &self->kept_program))
        return -1;
    self->time = Py_NAN;
    Py_XSETREF(self->event, (PyTypeObject *)Py_NewRef(event));
    Py_XSETREF(self->flow, (PyTypeObject *)Py_NewRef(flow));
    Py_XSETREF(self->kept, (PyTypeObject *)Py_NewRef(kept));
    return 0;
}

static int Lines_traverse(Lines *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->event);
    Py_VISIT(self->flow);
    Py_VISIT(self->kept);
    return 0;
}

static int Lines_clear(Lines *self)
{
    Py_CLEAR(self->event);
    Py_CLEAR(self->flow);
    Py_CLEAR(self->kept);
    return 0;
}

static void Lines_dealloc(Lines *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Lines_clear(self);
    PyMem_Free(self->written.bytes);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static inline char *put_text(char *at, const void *text, size_t length)
{
    memcpy(at, text, length);
    return at + length;
}

static inline char *put_number(char *at, uint64_t number)
{
    static const char pairs[] = "00010203040506070809101112131415161718192021222324252627282930313233343536373839404142434445464748"
                                "4950515253545556575859606162636465666768697071727374757677787980818283848586878889909192939495969798"
                                "99";
    char digits[LONGEST_NUMBER], *first = digits + sizeof digits;
    for (; number >= 100; number /= 100)
        memcpy(first -= 2, pairs + 2 * (number % 100), 2);
    if (number >= 10)
        memcpy(first -= 2, pairs + 2 * number, 2);
    else
        *--first = (char)('0' + number);
    return put_text(at, first, (size_t)(digits + sizeof digits - first));
}

/* Make the text of this time, unless it is cached. 1: it is cached now; 0: not a finite float; -1: an error. */
static int know_time(Lines *self, PyObject *time)
{
    if (time == NULL || !PyFloat_CheckExact(time) || !isfinite(PyFloat_AS_DOUBLE(time)))
        return 0;
    if (PyFloat_AS_DOUBLE(time) != self->time) {
        char *text = PyOS_double_to_string(PyFloat_AS_DOUBLE(time), 'r', 0, Py_DTSF_ADD_DOT_0, NULL);
        if (text == NULL)
            return -1;
        int fits = strlen(text) < sizeof self->time_text;
        if (fits) {
            strcpy(self->time_text, text);
            self->time = PyFloat_AS_DOUBLE(time);
        }
        PyMem_Free(text);
        return fits;
    }
    return 1;
}

/* Write one value of a line. NULL: it is not plain. */
static inline char *put_value(const Lines *self, char *at, const Piece *piece, PyObject *text, const uint8_t *now,
                              const uint8_t *before, Py_ssize_t size)
{
    uint64_t number, old;
    int is_long = piece->kind == LINE_LONG || piece->kind == LINE_GROWN;
    if (piece->kind >= LINE_LONG && (piece->offset + (is_long ? 8 : 4) > size || piece->sample + 4 > size))
        return NULL;
    switch (piece->kind) {
    case LINE_END:
        return at;
    case LINE_TIME:
        return put_text(at, self->time_text, strlen(self->time_text));
    case LINE_FLOW:
        return put_text(at, PyUnicode_1BYTE_DATA(text), (size_t)PyUnicode_GET_LENGTH(text));
    case LINE_LONG:
        return put_number(at, read64(now + piece->offset));
    case LINE_SHORT:
        return put_number(at, read32(now + piece->offset));
    case LINE_MILLISECONDS:
        number = read32(now + piece->offset);
        if (piece->parts == 0)
            return NULL;
        return number == 0 || read32(now + piece->sample) == 0 ? put_text(at, "null", 4)
                                                               : put_number(at, number * 1000 / piece->parts);
    case LINE_GROWN:
        number = read64(now + piece->offset);
        old = read64(before + piece->offset);
        return number < old ? NULL : put_number(at, number - old);
    default:
        return NULL;
    }
}

/* Write the line of an update with these counters. 1: written; 0: not plain; -1: an error. */
static int write_update(const Lines *self, Written *written, PyObject *program, PyObject *text, PyObject *raw,
                        PyObject *before)
{
    const uint8_t *piece_at = (const uint8_t *)PyBytes_AS_STRING(program), *end = piece_at + PyBytes_GET_SIZE(program);
    if (end - piece_at < 2 || read16(piece_at) != PyBytes_GET_SIZE(raw) || PyBytes_GET_SIZE(before) != PyBytes_GET_SIZE(raw))
        return 0;
    /* A number is at most as long as the heads of two pieces. The flow's text and the time occur at most once each. */
    size_t most = 3 * (size_t)PyBytes_GET_SIZE(program) + (size_t)PyUnicode_GET_LENGTH(text) + sizeof self->time_text + SHORT_TEXT + 1;
    if (written->room - written->size < most) {
        size_t room = 2 * written->room + most;
        char *bytes = PyMem_Realloc(written->bytes, room);
        if (bytes == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        written->bytes = bytes;
        written->room = room;
    }
    char *at = written->bytes + written->size;
    int values = 0;
    if (written->size)
        *at++ = '\n';
    for (piece_at += 2; piece_at < end;) {
        Piece piece;
        if (end - piece_at < (Py_ssize_t)sizeof piece)
            return 0;
        memcpy(&piece, piece_at, sizeof piece);
        piece_at += sizeof piece;
        if (piece.length > end - piece_at || (piece.kind == LINE_TIME && values++) || (piece.kind == LINE_FLOW && values++ != 1))
            return 0;
        if (piece.length <= SHORT_TEXT && end - piece_at >= SHORT_TEXT) {
            memcpy(at, piece_at, SHORT_TEXT); /* copying a constant number of bytes is faster */
            at += piece.length;
        }
        else
            at = put_text(at, piece_at, piece.length);
        piece_at += piece.length;
        at = put_value(self, at, &piece, text, (const uint8_t *)PyBytes_AS_STRING(raw),
                       (const uint8_t *)PyBytes_AS_STRING(before), PyBytes_GET_SIZE(raw));
        if (at == NULL)
            return 0;
    }
    written->size = (size_t)(at - written->bytes);
    return 1;
}

/* Write the line of an event. 1: written; 0: left to Python; -1: an error. */
static int write_event(Lines *self, Written *written, PyObject *event, PyObject *flows)
{
    if (Py_TYPE(event) != self->event)
        return 0;
    PyObject *flow = SLOT(event, self->event_flow), *report = SLOT(event, self->event_report);
    if (flow == NULL || Py_TYPE(flow) != self->flow || report == NULL || !PyTuple_CheckExact(report) ||
        PyTuple_GET_SIZE(report) != 8)
        return 0;
    PyObject *id = SLOT(flow, self->flow_id);
    PyObject *kept = id == NULL || !PyUnicode_CheckExact(id) ? NULL : PyDict_GetItemWithError(flows, id);
    if (kept == NULL)
        return PyErr_Occurred() ? -1 : 0;
    PyObject *raw = PyTuple_GET_ITEM(report, 6), *before = PyTuple_GET_ITEM(report, 7);
    if (Py_TYPE(kept) != self->kept || SLOT(kept, self->kept_flow) != flow ||
        SLOT(kept, self->kept_reader) != PyTuple_GET_ITEM(report, 0) || !PyBytes_CheckExact(raw) ||
        !PyBytes_CheckExact(before))
        return 0;
    PyObject *program = SLOT(kept, self->kept_program), *text = SLOT(kept, self->kept_text);
    if (program == NULL || !PyBytes_CheckExact(program) || text == NULL || !PyUnicode_CheckExact(text) ||
        !PyUnicode_IS_ASCII(text))
        return 0;
    int known = know_time(self, SLOT(event, self->event_time));
    return known <= 0 ? known : write_update(self, written, program, text, raw, before);
}

PyDoc_STRVAR(lines_doc, "take(events, index, flows)\n--\n\n"
"Write the lines of plain updates from event `index` on, some of them in each call.\n\n"
"Args:\n    flows: What is kept of the flows for writing, by their ids.\n\n"
"Returns:\n    (index, text): the event at which to go on, and the lines, with line breaks in between. An empty text:\n"
"    Python has to write the next event.");

static PyObject *Lines_take(Lines *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 3 || !PyDict_CheckExact(arguments[2]) || self->event == NULL) {
        PyErr_SetString(PyExc_TypeError, "take(events, index, flows)");
        return NULL;
    }
    Py_ssize_t index = PyLong_AsSsize_t(arguments[1]);
    if (index < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "there is no such event");
        return NULL;
    }
    PyObject *events = PySequence_Fast(arguments[0], "events are a sequence"), *answer = NULL;
    if (events == NULL)
        return NULL;
    Written written = self->written;
    self->written = (Written){NULL, 0, 0};
    int taken = 1;
    for (; index < PySequence_Fast_GET_SIZE(events) && written.size < LONGEST_TEXT; index++)
        if ((taken = write_event(self, &written, PySequence_Fast_GET_ITEM(events, index), arguments[2])) <= 0)
            break;
    PyObject *text = taken < 0 ? NULL : PyUnicode_New((Py_ssize_t)written.size, 127);
    if (text != NULL) {
        if (written.size)
            memcpy(PyUnicode_1BYTE_DATA(text), written.bytes, written.size);
        answer = Py_BuildValue("(nN)", index, text);
    }
    Py_DECREF(events);
    written.size = 0;
    if (self->written.bytes == NULL && written.room <= MOST_KEPT)
        self->written = written;
    else
        PyMem_Free(written.bytes);
    return answer;
}

/* --- the module ----------------------------------------------------------- */

static PyMethodDef reports_methods[] = {{"take", (PyCFunction)(void (*)(void))Reports_take, METH_FASTCALL, take_doc},
                                        {NULL, NULL, 0, NULL}};
static PyType_Slot reports_slots[] = {{Py_tp_doc, "Takes in the plain reports of one control socket."},
                                      {Py_tp_new, PyType_GenericNew},
                                      {Py_tp_init, Reports_init},
                                      {Py_tp_dealloc, Reports_dealloc},
                                      {Py_tp_traverse, Reports_traverse},
                                      {Py_tp_clear, Reports_clear},
                                      {Py_tp_methods, reports_methods},
                                      {0, NULL}};
static PyType_Spec reports_spec = {"nstat_async._speedups.Reports", sizeof(Reports), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, reports_slots};

static PyMethodDef rows_methods[] = {{"scan", (PyCFunction)(void (*)(void))Rows_scan, METH_FASTCALL, scan_doc},
                                     {NULL, NULL, 0, NULL}};
static PyType_Slot rows_slots[] = {{Py_tp_doc, "Takes in rows of dumps whose messages have one length."},
                                   {Py_tp_new, PyType_GenericNew},
                                   {Py_tp_init, Rows_init},
                                   {Py_tp_dealloc, Rows_dealloc},
                                   {Py_tp_traverse, Rows_traverse},
                                   {Py_tp_clear, Rows_clear},
                                   {Py_tp_methods, rows_methods},
                                   {0, NULL}};
static PyType_Spec rows_spec = {"nstat_async._speedups.Rows", sizeof(Rows), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                                rows_slots};

static PyMethodDef memory_methods[] = {{"begin", (PyCFunction)Memory_begin, METH_NOARGS, begin_doc},
                                       {NULL, NULL, 0, NULL}};
static PyType_Slot memory_slots[] = {{Py_tp_doc, "The rows of the last dump of a kind, in its order."},
                                     {Py_tp_new, PyType_GenericNew},
                                     {Py_tp_dealloc, Memory_dealloc},
                                     {Py_tp_traverse, Memory_traverse},
                                     {Py_tp_clear, Memory_clear},
                                     {Py_tp_methods, memory_methods},
                                     {0, NULL}};
static PyType_Spec memory_spec = {"nstat_async._speedups.Memory", sizeof(Memory), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, memory_slots};

static PyMethodDef entry_maker_methods[] = {
    {"take", (PyCFunction)(void (*)(void))EntryMaker_take, METH_FASTCALL, take_entry_maker_doc},
                                            {"apply", (PyCFunction)(void (*)(void))EntryMaker_apply, METH_FASTCALL, apply_entry_maker_doc},
                                      {NULL, NULL, 0, NULL}};
static PyType_Slot entry_maker_slots[] = {{Py_tp_doc, "Makes the entries of new sockets from their first rows."},
                                          {Py_tp_new, PyType_GenericNew},
                                          {Py_tp_init, EntryMaker_init},
                                          {Py_tp_dealloc, EntryMaker_dealloc},
                                          {Py_tp_traverse, EntryMaker_traverse},
                                          {Py_tp_clear, EntryMaker_clear},
                                          {Py_tp_methods, entry_maker_methods},
                                          {0, NULL}};
static PyType_Spec entry_maker_spec = {"nstat_async._speedups.EntryMaker", sizeof(EntryMaker), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                                       entry_maker_slots};

static PyMethodDef maker_methods[] = {{"make", (PyCFunction)(void (*)(void))Maker_make, METH_FASTCALL, make_doc},
                                      {"fill", (PyCFunction)(void (*)(void))Maker_fill, METH_FASTCALL, fill_doc},
                                      {"gather", (PyCFunction)(void (*)(void))Maker_gather, METH_FASTCALL, gather_doc},
                                      {NULL, NULL, 0, NULL}};
static PyType_Slot maker_slots[] = {{Py_tp_doc, "Makes objects of one class. Its arguments: the class, the names of slots, and the values of the last of them."},
                                    {Py_tp_new, PyType_GenericNew},
                                    {Py_tp_init, Maker_init},
                                    {Py_tp_dealloc, Maker_dealloc},
                                    {Py_tp_traverse, Maker_traverse},
                                    {Py_tp_clear, Maker_clear},
                                    {Py_tp_methods, maker_methods},
                                    {0, NULL}};
static PyType_Spec maker_spec = {"nstat_async._speedups.Maker", sizeof(Maker), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                                 maker_slots};

static PyMethodDef announcer_methods[] = {
    {"announce", (PyCFunction)(void (*)(void))Announcer_announce, METH_FASTCALL, announce_doc},
    {"flows", (PyCFunction)Announcer_flows, METH_O, flows_doc},
    {NULL, NULL, 0, NULL}};
static PyType_Slot announcer_slots[] = {{Py_tp_doc, "Makes flows of entries, and the events that announce them. Its arguments: the class of the entries,\n"
                                                    "makers of flows and events, and the value of `others` without other holders."},
                                        {Py_tp_new, PyType_GenericNew},
                                        {Py_tp_init, Announcer_init},
                                        {Py_tp_dealloc, Announcer_dealloc},
                                        {Py_tp_traverse, Announcer_traverse},
                                        {Py_tp_clear, Announcer_clear},
                                        {Py_tp_methods, announcer_methods},
                                        {0, NULL}};
static PyType_Spec announcer_spec = {"nstat_async._speedups.Announcer", sizeof(Announcer), 0,
                                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, announcer_slots};

static PyMethodDef lines_methods[] = {{"take", (PyCFunction)(void (*)(void))Lines_take, METH_FASTCALL, lines_doc},
                                      {NULL, NULL, 0, NULL}};
static PyType_Slot lines_slots[] = {{Py_tp_doc, "Writes updates of flows as lines. Its arguments: the classes of events, of flows, and of what is kept of them."},
                                    {Py_tp_new, PyType_GenericNew},
                                    {Py_tp_init, Lines_init},
                                    {Py_tp_dealloc, Lines_dealloc},
                                    {Py_tp_traverse, Lines_traverse},
                                    {Py_tp_clear, Lines_clear},
                                    {Py_tp_methods, lines_methods},
                                    {0, NULL}};
static PyType_Spec lines_spec = {"nstat_async._speedups.Lines", sizeof(Lines), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                                 lines_slots};

static int add_type(PyObject *module, PyType_Spec *spec, const char *name)
{
    PyObject *type = PyType_FromSpec(spec);
    if (type == NULL)
        return -1;
    if (PyModule_AddObject(module, name, type) < 0) {
        Py_DECREF(type);
        return -1;
    }
    return 0;
}

#ifdef __linux__
/* --- tables of descriptors, read without the interpreter's lock, so that a search does not wait for other threads --- */

#define MOST_AT_ONCE 1024
#define MOST_COUNTED (1 << 24)
#define RING_INODE -1

typedef struct {
    int *numbers; /* the descriptors that are still to be read, in ascending order; the last one is read first */
    Py_ssize_t count;
    Py_ssize_t found;
    int64_t inodes[MOST_AT_ONCE];
    int places[MOST_AT_ONCE];
} Table;

static inline int is_gone(int error) { return error == ENOENT || error == ESRCH || error == ENOTDIR; }

static int make_room_for_numbers(Table *table, Py_ssize_t room)
{
    int *numbers = realloc(table->numbers, (size_t)room * sizeof(int));
    if (numbers == NULL)
        return ENOMEM;
    table->numbers = numbers;
    return 0;
}

/* List the descriptors to read: all numbers below the size of the table, and those that the directory lists from there on
 * (`_numbers`). If the directory does not tell the size, or cannot begin there: all that it lists. */
static int list_numbers(Table *table, DIR *directory)
{
    struct stat facts;
    if (fstat(dirfd(directory), &facts))
        return errno;
    Py_ssize_t size = facts.st_size > 0 && facts.st_size < MOST_COUNTED ? (Py_ssize_t)facts.st_size : 0;
    Py_ssize_t room = size + 64;
    if (make_room_for_numbers(table, room))
        return ENOMEM;
    for (table->count = 0; table->count < size; table->count++)
        table->numbers[table->count] = (int)table->count;
    if (size)
        seekdir(directory, size + 2);
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(directory);
        if (entry == NULL)
            return errno;
        if (entry->d_name[0] < '0' || entry->d_name[0] > '9')
            continue;
        const int number = atoi(entry->d_name);
        if (number < size) { /* seekdir did not work: list all */
            table->count = size = 0;
            rewinddir(directory);
            continue;
        }
        if (table->count == room && make_room_for_numbers(table, room *= 2))
            return ENOMEM;
        table->numbers[table->count++] = number;
    }
}

static int64_t inode_of(const char *target, ssize_t size)
{
    static const char prefix[] = "socket:[", ring[] = "anon_inode:[io_uring]";
    const ssize_t length = sizeof(prefix) - 1;
    if (size > length && memcmp(target, prefix, (size_t)length) == 0)
        return strtoll(target + length, NULL, 10);
    return size == sizeof(ring) - 1 && memcmp(target, ring, (size_t)size) == 0 ? RING_INODE : 0;
}

static int read_links(Table *table, int directory, Py_ssize_t most)
{
    for (Py_ssize_t taken = 0; taken < most && table->count > 0; taken++) {
        char name[16], target[64];
        const int number = table->numbers[--table->count];
        snprintf(name, sizeof(name), "%d", number);
        const ssize_t size = readlinkat(directory, name, target, sizeof(target) - 1);
        if (size < 0 && !is_gone(errno))
            return errno;
        if (size < 0) /* closed meanwhile */
            continue;
        target[size] = 0;
        table->inodes[table->found] = inode_of(target, size);
        table->places[table->found++] = number;
    }
    return 0;
}

static int read_part(Table *table, long thread, int list, Py_ssize_t most)
{
    char path[32];
    snprintf(path, sizeof(path), "/proc/%ld/fd", thread);
    DIR *directory = opendir(path);
    if (directory == NULL)
        return errno;
    int error = list ? list_numbers(table, directory) : 0;
    if (!error)
        error = read_links(table, dirfd(directory), most);
    closedir(directory);
    return error;
}

static PyObject *part_of(const Table *table)
{
    PyObject *found = PyList_New(table->found);
    for (Py_ssize_t number = 0; found != NULL && number < table->found; number++) {
        PyObject *link = Py_BuildValue("(Li)", (long long)table->inodes[number], table->places[number]);
        if (link == NULL)
            Py_CLEAR(found);
        else
            PyList_SET_ITEM(found, number, link);
    }
    if (found == NULL)
        return NULL;
    return Py_BuildValue("(Ny#)", found, (const char *)(table->numbers ? table->numbers : table->places),
                         table->count * (Py_ssize_t)sizeof(int));
}

static PyObject *take_links(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    long thread;
    Py_ssize_t most, size;
    const char *waiting;
    if (!PyArg_ParseTuple(arguments, "lz#n", &thread, &waiting, &size, &most))
        return NULL;
    Table *table = malloc(sizeof(Table));
    if (table == NULL)
        return PyErr_NoMemory();
    table->found = table->count = 0;
    table->numbers = NULL;
    int error = 0;
    if (waiting != NULL && size > 0) {
        table->numbers = malloc((size_t)size);
        if (table->numbers == NULL)
            error = ENOMEM;
        else
            memcpy(table->numbers, waiting, (size_t)size);
        table->count = size / (Py_ssize_t)sizeof(int);
    }
    if (!error) {
        Py_BEGIN_ALLOW_THREADS
        error = read_part(table, thread, waiting == NULL, most < MOST_AT_ONCE ? most : MOST_AT_ONCE);
        Py_END_ALLOW_THREADS
    }
    PyObject *part = NULL;
    if (is_gone(error))
        part = Py_NewRef(Py_None);
    else if (error) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
    } else
        part = part_of(table);
    free(table->numbers);
    free(table);
    return part;
}

PyDoc_STRVAR(take_links_doc, "take_links(thread, waiting, most) -> ([(inode, descriptor)], waiting) or None\n\n"
                             "As `_take_links` of _io/tables.py.");

/* --- single reads, with the interpreter's lock: releasing it and getting it back would take longer than the read --- */

static PyObject *inode_at(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    long thread;
    int descriptor;
    if (!PyArg_ParseTuple(arguments, "li", &thread, &descriptor))
        return NULL;
    char path[48], target[64];
    snprintf(path, sizeof(path), "/proc/%ld/fd/%d", thread, descriptor);
    const ssize_t size = readlink(path, target, sizeof(target) - 1);
    if (size < 0)
        return Py_NewRef(Py_None);
    target[size] = 0;
    return PyLong_FromLongLong(inode_of(target, size));
}

PyDoc_STRVAR(inode_at_doc, "inode_at(thread, descriptor) -> inode or None\n\nAs `_inode_at` of _io/tables.py.");

static PyObject *size_of_table(PyObject *Py_UNUSED(module), PyObject *pid)
{
    const long number = PyLong_AsLong(pid);
    if (number == -1 && PyErr_Occurred())
        return NULL;
    char path[32];
    struct stat facts;
    snprintf(path, sizeof(path), "/proc/%ld/fd", number);
    return stat(path, &facts) ? Py_NewRef(Py_None) : PyLong_FromLongLong(facts.st_size);
}

PyDoc_STRVAR(size_of_doc, "size_of(pid) -> number or None\n\nAs `_size_of` of _io/tables.py.");

/* --- look-ups of sockets, several at once: the interpreter's lock is released once for all ------------------------ */

#define LONGEST_ANSWER 8192

static PyObject *exchange(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    int file;
    const char *requests;
    Py_ssize_t size, count, got = 0;
    if (!PyArg_ParseTuple(arguments, "iy#n", &file, &requests, &size, &count))
        return NULL;
    char *room = count >= 0 && count <= MOST_AT_ONCE ? malloc((size_t)count * LONGEST_ANSWER + 1) : NULL;
    ssize_t sizes[MOST_AT_ONCE];
    if (room == NULL)
        return PyErr_NoMemory();
    int error = 0;
    Py_BEGIN_ALLOW_THREADS
    error = send(file, requests, (size_t)size, 0) < 0 ? errno : 0;
    for (; !error && got < count; got++)
        if ((sizes[got] = recv(file, room + got * LONGEST_ANSWER, LONGEST_ANSWER, 0)) < 0)
            error = errno;
    Py_END_ALLOW_THREADS
    PyObject *answers = NULL;
    if (error) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
    } else
        answers = PyList_New(count);
    for (Py_ssize_t number = 0; answers != NULL && number < count; number++) {
        PyObject *answer = PyBytes_FromStringAndSize(room + number * LONGEST_ANSWER, sizes[number]);
        if (answer == NULL)
            Py_CLEAR(answers);
        else
            PyList_SET_ITEM(answers, number, answer);
    }
    free(room);
    return answers;
}

PyDoc_STRVAR(exchange_doc, "exchange(file, requests, count) -> [answer]\n\nAs `_exchange` of _io/glance.py.");

/* --- connections that follow each other in their ports ------------------------------------------------------------- */

#define PORT_STEP 2
#define PORTS_AHEAD 8
#define LEAST_ROW 88
#define ERROR_MESSAGE 2
#define PORTS_OF_ROW 20
#define PORTS_OF_REQUEST 24
#define LONGEST_REQUEST 128
#define STATE_OF_ROW 17
#define EXPIRES_OF_ROW 68
#define TIME_WAIT 6

typedef struct {
    char *rows; /* one behind the other, each with its size in front */
    size_t size;
    Py_ssize_t count;
} Followed;

static int keep_row(Followed *found, const char *row, uint32_t size)
{
    char *rows = realloc(found->rows, found->size + sizeof(size) + size);
    if (rows == NULL)
        return ENOMEM;
    found->rows = rows;
    memcpy(rows + found->size, &size, sizeof(size));
    memcpy(rows + found->size + sizeof(size), row, size);
    found->size += sizeof(size) + size;
    found->count++;
    return 0;
}

/* True for a connection in TIME_WAIT that stays there for less than `least` milliseconds. */
static int is_older(const char *row, uint32_t least)
{
    return row[STATE_OF_ROW] == TIME_WAIT && read32((const uint8_t *)row + EXPIRES_OF_ROW) < least;
}

/* Look up the next ports once; `port` becomes the last one that exists. */
static int follow_on(int file, const char *request, size_t size, size_t at, unsigned int *port, uint32_t least, Followed *found)
{
    char requests[PORTS_AHEAD * LONGEST_REQUEST], row[LONGEST_ANSWER];
    const unsigned int first = *port;
    int asked = 0;
    for (unsigned int next = first + PORT_STEP; asked < PORTS_AHEAD && next < 1 << 16; next += PORT_STEP, asked++) {
        char *one = requests + asked * size;
        memcpy(one, request, size);
        one[at] = (char)(next >> 8);
        one[at + 1] = (char)next;
    }
    if (asked && send(file, requests, asked * size, 0) < 0)
        return errno;
    for (int number = 0; number < asked; number++) {
        const ssize_t got = recv(file, row, sizeof(row), 0);
        if (got < 0)
            return errno;
        /* a listener answers for a connection that does not exist, with its own ports */
        if (got < LEAST_ROW || read16((const uint8_t *)row + 4) == ERROR_MESSAGE ||
            memcmp(row + PORTS_OF_ROW, requests + number * size + PORTS_OF_REQUEST, 4) != 0 || is_older(row, least))
            continue;
        if (keep_row(found, row, (uint32_t)got))
            return ENOMEM;
        *port = first + (unsigned int)(number + 1) * PORT_STEP;
    }
    return 0;
}

static PyObject *rows_of(const Followed *found)
{
    PyObject *rows = PyList_New(found->count);
    size_t at = 0;
    for (Py_ssize_t number = 0; rows != NULL && number < found->count; number++) {
        uint32_t size;
        memcpy(&size, found->rows + at, sizeof(size));
        PyObject *row = PyBytes_FromStringAndSize(found->rows + at + sizeof(size), size);
        at += sizeof(size) + size;
        if (row == NULL)
            Py_CLEAR(rows);
        else
            PyList_SET_ITEM(rows, number, row);
    }
    return rows;
}

static PyObject *follow(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    int file;
    const char *request;
    unsigned int port, least;
    Py_ssize_t size, at, number;
    if (!PyArg_ParseTuple(arguments, "iy#nInI", &file, &request, &size, &at, &port, &number, &least))
        return NULL;
    if (size > LONGEST_REQUEST || size < PORTS_OF_REQUEST + 4 || at < 0 || at + 2 > size) {
        PyErr_SetString(PyExc_ValueError, "not a request for a socket");
        return NULL;
    }
    Followed found = {NULL, 0, 0};
    int error = 0;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t before = -1; !error && found.count < number && found.count > before;) {
        before = found.count;
        error = follow_on(file, request, (size_t)size, (size_t)at, &port, least, &found);
    }
    Py_END_ALLOW_THREADS
    PyObject *rows = NULL;
    if (error) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
    } else
        rows = rows_of(&found);
    free(found.rows);
    return rows;
}

PyDoc_STRVAR(follow_doc, "follow(file, request, at, port, number, least) -> [answer]\n\nAs `follow` of _io/successors.py, of a socket.");

/* --- counters of the kernel: waking the interpreter without need would cost more than reading them ---------------- */

typedef struct { /* the array of `Counters.numbers` */
    int64_t files[3], connections, datagrams, sockets[5], readings, moved;
} Counts;

/* Read the numbers at these places among the words of a text that ends with NUL. Returns 0 or an error number. */
static int numbers_at(const char *text, const int *places, int count, int64_t *numbers)
{
    int place = 0;
    for (int number = 0; number < count; number++)
        for (;; place++) {
            text += strspn(text, " \n");
            char *end;
            if (place == places[number]) {
                numbers[number] = strtoll(text, &end, 10);
                if (end == text)
                    return ENODATA;
                break;
            }
            text += strcspn(text, " \n");
        }
    return 0;
}

static int read_file(int64_t file, const char *behind, const int *places, int count, int64_t *numbers)
{
    char text[8192];
    const ssize_t size = pread((int)file, text, sizeof(text) - 1, 0);
    if (size < 0)
        return errno;
    text[size] = 0;
    const char *at = text;
    for (int line = 0; behind != NULL && at != NULL && line < 2; line++) /* the first line that begins so has the names, the second the numbers */
        if ((at = strstr(at, behind)) != NULL)
            at += strlen(behind);
    return at == NULL ? ENODATA : numbers_at(at, places, count, numbers);
}

static int read_counts(Counts *counts, int most)
{
    static const int four[] = {5, 9, 16}, six[] = {2, 5}, opened[] = {4, 5};
    int64_t sockets[5] = {0}, connections[2];
    int error = read_file(counts->files[1], NULL, four, 3, sockets);
    if (!error && counts->files[2] >= 0)
        error = read_file(counts->files[2], NULL, six, 2, sockets + 3);
    if (error)
        return error;
    const int64_t datagrams = sockets[2] + sockets[4];
    const int thorough = counts->readings % most == 0 || memcmp(sockets, counts->sockets, sizeof(sockets)) != 0;
    if (thorough && (error = read_file(counts->files[0], "\nTcp: ", opened, 2, connections)))
        return error;
    if (datagrams > counts->datagrams)
        counts->moved |= 2;
    if (thorough && connections[0] + connections[1] != counts->connections) {
        counts->connections = connections[0] + connections[1];
        counts->moved |= 1;
    }
    counts->datagrams = datagrams;
    memcpy(counts->sockets, sockets, sizeof(sockets));
    counts->readings++;
    return 0;
}

/* Read all counters after each pause, until one of them moved, `times` times at most, or until `stop` is readable. Returns 0 or
 * an error number. */
static int watch_counts(int stop, Counts **watched, Py_ssize_t count, double pause, Py_ssize_t times, int most)
{
    const struct timespec rest = {(time_t)pause, (long)((pause - (double)(time_t)pause) * 1e9)};
    for (int moved = 0; times > 0 && !moved; times--) {
        struct pollfd file = {stop, POLLIN, 0};
        struct timespec left = rest;
        if (ppoll(&file, 1, &left, NULL) != 0)
            return 0;
        for (Py_ssize_t number = 0; number < count; number++) {
            const int error = read_counts(watched[number], most);
            if (error)
                return error;
            moved |= watched[number]->moved != 0;
        }
    }
    return 0;
}

static PyObject *await_counters(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    int stop, most;
    Py_ssize_t times, count = 0;
    double pause;
    PyObject *watched;
    if (!PyArg_ParseTuple(arguments, "iO!dni", &stop, &PyTuple_Type, &watched, &pause, &times, &most))
        return NULL;
    const Py_ssize_t all = PyTuple_GET_SIZE(watched);
    Py_buffer *buffers = PyMem_Calloc((size_t)all + 1, sizeof(Py_buffer) + sizeof(Counts *));
    if (buffers == NULL)
        return PyErr_NoMemory();
    Counts **counts = (Counts **)(buffers + all + 1);
    int error = 0;
    while (count < all && !PyErr_Occurred())
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(watched, count), buffers + count, PyBUF_WRITABLE) == 0) {
            counts[count] = buffers[count].buf;
            if (buffers[count++].len != sizeof(Counts))
                PyErr_SetString(PyExc_ValueError, "not the numbers of counters");
        }
    if (!PyErr_Occurred()) {
        Py_BEGIN_ALLOW_THREADS
        error = watch_counts(stop, counts, count, pause, times, most);
        Py_END_ALLOW_THREADS
    }
    while (count > 0)
        PyBuffer_Release(buffers + --count);
    PyMem_Free(buffers);
    if (error) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(await_counters_doc, "await_counters(stop, (numbers, ...), pause, times, most)\n\n"
                                 "As `await_counters` of _io/counters.py.");
static PyMethodDef functions[] = {{"take_links", take_links, METH_VARARGS, take_links_doc},
                                  {"inode_at", inode_at, METH_VARARGS, inode_at_doc},
                                  {"size_of", size_of_table, METH_O, size_of_doc},
                                  {"exchange", exchange, METH_VARARGS, exchange_doc},
                                  {"follow", follow, METH_VARARGS, follow_doc},
                                  {"await_counters", await_counters, METH_VARARGS, await_counters_doc},
                                  {NULL, NULL, 0, NULL}};
#else
static PyMethodDef functions[] = {{NULL, NULL, 0, NULL}};
#endif

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "nstat_async._speedups",
                                        "The hottest loops of the package.", -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__speedups(void)
{
    pieces_name = PyUnicode_InternFromString("pieces");
    no_bytes = PyBytes_FromStringAndSize("", 0);
    zero = PyLong_FromLong(0);
    minus_one = PyLong_FromLong(-1);
    if (pieces_name == NULL || no_bytes == NULL || zero == NULL || minus_one == NULL)
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL &&
        (PyModule_AddIntConstant(module, "REVISION", REVISION) < 0 ||
         add_type(module, &reports_spec, "Reports") < 0 || add_type(module, &rows_spec, "Rows") < 0 ||
         add_type(module, &memory_spec, "Memory") < 0 || add_type(module, &maker_spec, "Maker") < 0 ||
         add_type(module, &entry_maker_spec, "EntryMaker") < 0 || add_type(module, &lines_spec, "Lines") < 0 || add_type(module, &announcer_spec, "Announcer") < 0))
        Py_CLEAR(module);
    if (module != NULL) { /* the module is never unloaded */
        PyObject *memory = PyObject_GetAttrString(module, "Memory"), *maker = PyObject_GetAttrString(module, "Maker");
        Py_XSETREF(memory_type, (PyTypeObject *)memory);
        Py_XSETREF(maker_type, (PyTypeObject *)maker);
        if (memory == NULL || maker == NULL)
            Py_CLEAR(module);
    }
    return module;
}
