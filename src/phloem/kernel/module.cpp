// The kernel's face to Python. No Python object is touched while the GIL is released.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "builder.hpp"
#include "ring.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace phloem;

namespace {

// Buffers of objects with contiguous memory, released with this object.
class BufferViews {
  public:
    explicit BufferViews(size_t most) { views_.reserve(most); }
    ~BufferViews() {
        for (Py_buffer& view : views_) PyBuffer_Release(&view);
    }
    BufferViews(const BufferViews&) = delete;
    BufferViews& operator=(const BufferViews&) = delete;
    const Py_buffer& add(nb::handle object) {
        Py_buffer view;
        if (PyObject_GetBuffer(object.ptr(), &view, PyBUF_C_CONTIGUOUS) != 0) throw nb::python_error();
        views_.push_back(view);  // within what was reserved: Py_buffer may not move while it is in use
        return views_.back();
    }

  private:
    std::vector<Py_buffer> views_;
};

class BufferView {
  public:
    explicit BufferView(nb::handle object) : views_(1), view_(views_.add(object)) {}
    const uint8_t* data() const { return static_cast<const uint8_t*>(view_.buf); }
    size_t size() const { return static_cast<size_t>(view_.len); }

  private:
    BufferViews views_;
    const Py_buffer& view_;
};

// The memory of one frame's body, read-only, as long as anything looks at it: it keeps the ring mapped.
struct Body {
    std::shared_ptr<Mapping> map;
    const uint8_t* data;
    size_t size;
    int looking = 0;

    static int get(PyObject* self, Py_buffer* view, int flags) {
        Body* body = nb::inst_ptr<Body>(self);
        if (PyBuffer_FillInfo(view, self, const_cast<uint8_t*>(body->data), static_cast<Py_ssize_t>(body->size), 1,
                              flags) != 0)
            return -1;
        ++body->looking;
        return 0;
    }
    static void release(PyObject* self, Py_buffer*) { --nb::inst_ptr<Body>(self)->looking; }
};

PyType_Slot body_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(Body::get)},
                            {Py_bf_releasebuffer, reinterpret_cast<void*>(Body::release)},
                            {0, nullptr}};

// A frame in a ring. `body` is a read-only view that dies when the frame is closed.
struct Frame {
    const FrameHeader* header;
    uint64_t end;
    std::shared_ptr<Mapping> map;
    nb::object owner, view;

    const uint8_t* bytes() const {
        if (!header) throw RingError("this frame has been released");
        return reinterpret_cast<const uint8_t*>(header + 1);
    }
    nb::object body() {
        const uint8_t* p = bytes();
        if (!view.is_valid()) {
            if (!owner.is_valid()) owner = nb::cast(Body{map, p, header->body_size});
            view = nb::steal(PyMemoryView_FromObject(owner.ptr()));
            if (!view.is_valid()) throw nb::python_error();
        }
        return view;
    }
    nb::bytes meta() const {
        const uint8_t* p = bytes();  // first: it looks whether there is a header
        return nb::bytes(p + header->body_size, header->meta_size);
    }
    void close() {
        if (view.is_valid()) view.attr("release")();
        view = nb::object();
        if (owner.is_valid() && nb::cast<Body&>(owner).looking > 0) {
            PyErr_SetString(PyExc_BufferError, "an array still looks at this frame; let go of it before the frame is closed");
            throw nb::python_error();
        }
        owner = nb::object();
        header = nullptr;
        map.reset();
    }
};

std::vector<BankSpan> bank_spans(nb::list banks, BufferViews& views, size_t n_events) {
    std::vector<BankSpan> spans;
    spans.reserve(banks.size());
    for (nb::handle item : banks) {
        PyObject* bank = item.ptr();
        if (!PyTuple_Check(bank) || PyTuple_GET_SIZE(bank) != 3) throw nb::type_error("a bank is (name, TID, data)");
        PyObject* name = PyTuple_GET_ITEM(bank, 0);
        if (!PyBytes_Check(name) || PyBytes_GET_SIZE(name) != 4) throw nb::value_error("a bank name has 4 bytes");
        const Py_buffer& data = views.add(PyTuple_GET_ITEM(bank, 2));
        const size_t size = static_cast<size_t>(data.len);
        if (size % n_events != 0) throw nb::value_error("bank data do not divide into the events");
        if (size / n_events > 0x7FFFFFFF) throw nb::value_error("a bank has less than 2 GiB");
        BankSpan span{};
        std::memcpy(span.name, PyBytes_AS_STRING(name), 4);
        span.tid = nb::cast<uint32_t>(nb::handle(PyTuple_GET_ITEM(bank, 1)));
        span.data = static_cast<const uint8_t*>(data.buf);
        span.size = size / n_events;
        spans.push_back(span);
    }
    return spans;
}

nb::tuple check_events(const Frame& frame, uint32_t expected) {
    const uint8_t* p = frame.bytes();
    const size_t size = frame.header->body_size;
    uint64_t sum = 0, wrong = 0, n = 0;
    {
        nb::gil_scoped_release release;
        size_t at = 0;
        while (at + 16 <= size) {
            const uint32_t serial = load_u32(p + at + 4);
            const size_t event = align_up(16 + size_t{load_u32(p + at + 12)}, 8);
            if (event > size - at) break;
            if (serial != expected) ++wrong;
            expected = serial + 1;
            const uint8_t* q = p + at;
            for (size_t i = 0; i < event; i += 8) {
                uint64_t word;
                std::memcpy(&word, q + i, 8);
                sum += word;
            }
            at += event;
            ++n;
        }
        if (at != size) ++wrong;
    }
    return nb::make_tuple(n, expected, wrong, sum);
}

// Fills the writer's open frame in place. Opens one where there is none; `no_space`: the ring is full.
nb::object build_into(Builder& builder, RingWriter& writer) {
    constexpr size_t MARKS_ROOM = 12 * 1024, CHECKPOINT_GROWS = 4 * 1024;
    Builder::Built built;
    bool no_space = false;
    {
        nb::gil_scoped_release release;
        for (size_t at_least = 0;; at_least = built.wanted) {
            size_t room = 0;
            const size_t meta_room = builder.checkpoint_bound() + CHECKPOINT_GROWS;
            uint8_t* out = writer.open_body(at_least, meta_room + MARKS_ROOM, room);
            no_space = !out;
            if (no_space) break;
            built = builder.build(out, room, meta_room);
            writer.fill(built.bytes, built.n_events, built.first_serial, built.next_serial);
            if (built.why != Builder::Stop::room || writer.open_events() || built.wanted <= room) break;
        }
    }
    if (no_space) return nb::none();
    return nb::make_tuple(static_cast<uint32_t>(built.why), built.n_events, built.bytes, built.wanted);
}

}  // namespace

NB_MODULE(_kernel, m) {
    nb::exception<RingError>(m, "RingError");
    m.attr("FRAME_HEADER_SIZE") = sizeof(FrameHeader);
    m.attr("CAPACITY_STEP") = CAPACITY_STEP;

    nb::class_<Bell>(m, "Bell")
        .def(nb::init<const std::string&>(), "path"_a)
        .def_prop_ro("path", &Bell::path)
        .def("ring", &Bell::ring, nb::call_guard<nb::gil_scoped_release>())
        .def("arm", &Bell::arm)
        .def("disarm", &Bell::disarm)
        .def("sleep", &Bell::sleep, "token"_a, "timeout_ns"_a, nb::call_guard<nb::gil_scoped_release>());

    nb::class_<Body>(m, "Body", nb::type_slots(body_slots));
    nb::class_<Frame>(m, "Frame")
        .def_prop_ro("kind", [](const Frame& f) { f.bytes(); return f.header->kind; })
        .def_prop_ro("run", [](const Frame& f) { f.bytes(); return f.header->run; })
        .def_prop_ro("flags", [](const Frame& f) { f.bytes(); return f.header->flags; })
        .def_prop_ro("sequence", [](const Frame& f) { f.bytes(); return f.header->sequence; })
        .def_prop_ro("n_events", [](const Frame& f) { f.bytes(); return f.header->n_events; })
        .def_prop_ro("first_serial", [](const Frame& f) { f.bytes(); return f.header->first_serial; })
        .def_prop_ro("next_serial", [](const Frame& f) { f.bytes(); return f.header->next_serial; })
        .def_prop_ro("time_ns", [](const Frame& f) { f.bytes(); return f.header->time_ns; })
        .def_prop_ro("total_events", [](const Frame& f) { f.bytes(); return f.header->total_events; })
        .def_prop_ro("total_bytes", [](const Frame& f) { f.bytes(); return f.header->total_bytes; })
        .def_prop_ro("generation", [](const Frame& f) { f.bytes(); return f.header->generation; })
        .def_prop_ro("body_size", [](const Frame& f) { f.bytes(); return f.header->body_size; })
        .def_prop_ro("header", [](const Frame& f) { return nb::bytes(f.bytes() - sizeof(FrameHeader), sizeof(FrameHeader)); })
        .def_prop_ro("end", [](const Frame& f) { return f.end; })
        .def_prop_ro("body", &Frame::body)
        .def_prop_ro("meta", &Frame::meta)
        .def("close", &Frame::close);

    nb::class_<RingWriter>(m, "RingWriter")
        .def("__init__",
             [](RingWriter* self, std::string path, std::string source, std::string buffer, uint64_t capacity,
                std::vector<std::string> readers, uint64_t max_frame, int64_t flush_ns, uint32_t free_slots) {
                 RingWriter::Options o;
                 o.path = std::move(path);
                 o.source = std::move(source);
                 o.buffer = std::move(buffer);
                 o.capacity = capacity;
                 o.readers = std::move(readers);
                 o.max_frame = max_frame;
                 o.flush_ns = flush_ns;
                 o.free_slots = free_slots;
                 new (self) RingWriter(o);
             },
             "path"_a, "source"_a, "buffer"_a, "capacity"_a, "readers"_a, "max_frame"_a = uint64_t{256} << 10,
             "flush_ns"_a = int64_t{2'000'000}, "free_slots"_a = 4u)
        .def("begin_run", &RingWriter::begin_run, "run"_a, nb::call_guard<nb::gil_scoped_release>())
        .def("send_event",
             [](RingWriter& w, uint16_t event_id, uint16_t trigger_mask, uint32_t serial, uint32_t time_stamp,
                nb::list banks) {
                 BufferViews views(banks.size());
                 const auto spans = bank_spans(banks, views, 1);
                 return w.send_event({event_id, trigger_mask, serial, time_stamp, 0}, spans);
             },
             "event_id"_a, "trigger_mask"_a, "serial_number"_a, "time_stamp"_a, "banks"_a)
        .def("send_batch",
             [](RingWriter& w, uint16_t event_id, uint16_t trigger_mask, uint32_t first_serial, uint32_t time_stamp,
                nb::list banks, size_t n_events, size_t start, nb::object serials) {
                 if (n_events == 0) throw nb::value_error("a batch has at least one event");
                 BufferViews views(banks.size() + 1);
                 const auto spans = bank_spans(banks, views, n_events);
                 const uint32_t* numbers = nullptr;
                 if (!serials.is_none()) {
                     const Py_buffer& view = views.add(serials);
                     if (static_cast<size_t>(view.len) != 4 * n_events) throw nb::value_error("serial numbers: one uint32 per event");
                     numbers = static_cast<const uint32_t*>(view.buf);
                 }
                 nb::gil_scoped_release release;
                 return w.send_batch({event_id, trigger_mask, first_serial, time_stamp, 0}, spans, numbers, start, n_events);
             },
             "event_id"_a, "trigger_mask"_a, "first_serial"_a, "time_stamp"_a, "banks"_a, "n_events"_a, "start"_a,
             "serials"_a.none())
        .def("send_raw",
             [](RingWriter& w, nb::object data, size_t start) {
                 BufferView view(data);
                 nb::gil_scoped_release release;
                 return w.send_raw(view.data(), view.size(), start);
             },
             "data"_a, "start"_a = 0)
        .def("send_frame",
             [](RingWriter& w, uint16_t kind, nb::object body, uint32_t n_events, nb::object meta) {
                 BufferView body_view(body), meta_view(meta);
                 nb::gil_scoped_release release;
                 return w.send_frame(static_cast<FrameKind>(kind), body_view.data(), body_view.size(), n_events,
                                     meta_view.data(), meta_view.size());
             },
             "kind"_a, "body"_a, "n_events"_a, "meta"_a)
        .def("flush", &RingWriter::flush, nb::call_guard<nb::gil_scoped_release>())
        .def("wait_space", &RingWriter::wait_space, "timeout_ns"_a, nb::call_guard<nb::gil_scoped_release>())
        .def("close_with",
             [](RingWriter& w, nb::object meta) {
                 BufferView view(meta);
                 w.close_with(view.data(), view.size());
             },
             "meta"_a)
        .def_prop_ro("first_open_event",  // a copy of it; empty if there is none
                     [](const RingWriter& w) {
                         const uint8_t* p = w.first_open_event();
                         return p ? nb::bytes(p, 16 + size_t{load_u32(p + 12)}) : nb::bytes("", 0);
                     })
        .def_prop_ro("has_open", &RingWriter::has_open)
        .def_prop_ro("open_events", &RingWriter::open_events)
        .def_prop_ro("capacity", &RingWriter::capacity)
        .def_prop_ro("generation", &RingWriter::generation)
        .def_prop_ro("used", &RingWriter::used)
        .def_prop_ro("drained", &RingWriter::drained)
        .def_prop_ro("continued", &RingWriter::continued)
        .def_prop_ro("run", &RingWriter::run)
        .def_prop_ro("sequence", &RingWriter::sequence)
        .def_prop_ro("total_events", &RingWriter::total_events)
        .def_prop_ro("total_bytes", &RingWriter::total_bytes)
        .def_prop_ro("next_serial", &RingWriter::next_serial)
        .def_prop_ro("blocked_ns", &RingWriter::blocked_ns);

    nb::class_<RingReader>(m, "RingReader")
        .def(nb::init<const std::string&, const std::string&, bool, std::shared_ptr<Bell>>(), "path"_a, "name"_a,
             "all"_a, "bell"_a.none())
        .def("next",
             [](RingReader& r) -> std::optional<Frame> {
                 const FrameHeader* header = r.next();
                 if (!header) return std::nullopt;
                 return Frame{header, r.cursor(), r.mapping(), nb::object(), nb::object()};
             })
        .def("copy_next",
             [](RingReader& r) -> nb::object {
                 std::vector<uint8_t> copy;
                 bool got;
                 {
                     nb::gil_scoped_release release;
                     got = r.copy_next(copy);
                 }
                 if (!got) return nb::none();
                 return nb::bytes(copy.data(), copy.size());
             })
        .def("release", &RingReader::release, "position"_a)
        .def_prop_ro("cursor", &RingReader::cursor)
        .def_prop_ro("has_data", &RingReader::has_data)
        .def_prop_ro("replaced", &RingReader::replaced)
        .def_prop_ro("writer_waiting", &RingReader::writer_waiting)
        .def_prop_ro("writer_alive", &RingReader::writer_alive)
        .def_prop_ro("writer_pid", &RingReader::writer_pid)
        .def_prop_ro("backlog", &RingReader::backlog)
        .def_prop_ro("capacity", &RingReader::capacity)
        .def_prop_ro("generation", &RingReader::generation)
        .def_prop_ro("missed_events", &RingReader::missed_events)
        .def_prop_ro("path", &RingReader::path);

    nb::class_<Builder>(m, "Builder")
        .def("__init__",
             [](Builder* self, std::vector<std::string> names, uint16_t event_id, uint16_t trigger_mask,
                uint32_t reorder, uint32_t window, uint32_t on_incomplete, uint64_t max_event) {
                 if (on_incomplete > 2) throw nb::value_error("on_incomplete is 0 (build), 1 (discard) or 2 (stop)");
                 new (self) Builder({std::move(names), event_id, trigger_mask, reorder, window,
                                     static_cast<Policy>(on_incomplete), max_event});
             },
             "names"_a, "event_id"_a = 1, "trigger_mask"_a = 0xFFFF, "reorder"_a = 0, "window"_a = 4096,
             "on_incomplete"_a = 0, "max_event"_a = UINT64_MAX)
        .def("begin_run", &Builder::begin_run, "run"_a)
        .def("add_frame",
             [](Builder& b, uint32_t source, const Frame& f) {
                 b.add_frame(source, f.header->run, f.bytes(), f.header->body_size, f.header->n_events,
                             f.header->sequence, f.end);
             },
             "source"_a, "frame"_a)
        .def("add_bytes",  // whole events at 8-byte steps, which the caller keeps alive
             [](Builder& b, uint32_t source, uint32_t run, nb::object body, uint32_t n_events, uint64_t sequence) {
                 BufferView view(body);
                 b.add_frame(source, run, view.data(), view.size(), n_events, sequence, sequence + 1);
             },
             "source"_a, "run"_a, "body"_a, "n_events"_a, "sequence"_a, nb::keep_alive<1, 4>())
        .def("end_source", &Builder::end_source, "source"_a)
        .def("ended", &Builder::ended, "source"_a)
        .def("frames_waiting", &Builder::frames_waiting, "source"_a)
        .def("all_read", &Builder::all_read, "source"_a)
        .def("add_border",
             [](Builder& b, uint32_t source, const Frame& f) {
                 b.add_border(source, f.header->sequence, f.end);
             },
             "source"_a, "frame"_a)
        .def("build",
             [](Builder& b, size_t room) {
                 std::vector<uint8_t> out(room);
                 const auto built = b.build(out.data(), room, SIZE_MAX);
                 return nb::make_tuple(nb::bytes(out.data(), built.bytes), static_cast<uint32_t>(built.why),
                                       built.n_events, built.wanted);
             },
             "room"_a)
        .def("build_into", &build_into, "writer"_a)
        .def("waited_for", &Builder::waited_for)
        .def_prop_ro("has_open", &Builder::has_open)
        .def_prop_ro("oldest_serial", &Builder::oldest_serial)
        .def("close_without",
             [](Builder& b, uint32_t source, uint32_t cause) { b.close_without(source, static_cast<Cause>(cause)); },
             "source"_a, "cause"_a)
        .def("released", &Builder::released, "source"_a)
        .def("fates",
             [](const Builder& b, uint32_t source) {
                 const Fates& f = b.fates(source);
                 return nb::make_tuple(f.received, f.built, f.incomplete, f.late, f.duplicate, f.discarded, f.quarantined);
             },
             "source"_a)
        .def_prop_ro("events_built", &Builder::events_built)
        .def_prop_ro("events_incomplete", &Builder::events_incomplete)
        .def_prop_ro("events_too_large", &Builder::events_too_large)
        .def_prop_ro("largest_refused", &Builder::largest_refused)
        .def("last_serial", &Builder::last_serial, "source"_a)
        .def("take_marks",
             [](Builder& b) {
                 nb::list out;
                 for (const Mark& mark : b.take_marks())
                     out.append(nb::make_tuple(mark.source, static_cast<uint32_t>(mark.cause),
                                               static_cast<uint32_t>(mark.first), static_cast<uint32_t>(mark.last)));
                 return out;
             })
        .def("checkpoint",
             [](const Builder& b, std::vector<uint64_t> generations) {
                 const auto bytes = b.checkpoint(generations);
                 return nb::bytes(bytes.data(), bytes.size());
             },
             "generations"_a);

    m.def("check_events", &check_events, "frame"_a, "expected"_a,
          "Reads every byte of a frame's events: (events, next serial number, events out of order, sum of words).");
    m.def("writer_pid", [](const std::string& path) { return Claim::holder(path, 0); }, "path"_a,
          "Process that holds the writer's place of a ring, 0 if none (or this one).");
    m.def("settle", &RingWriter::settle, "path"_a,
          "Closes the open frame of a ring whose writer is dead; True if there was one to care for.",
          nb::call_guard<nb::gil_scoped_release>());
    m.def("monotonic_ns", &monotonic_ns);
}
