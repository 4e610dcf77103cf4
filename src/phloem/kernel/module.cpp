// The kernel's face to Python. No Python object is touched while the GIL is released.
#include "bindings.hpp"

using namespace phloem;
using namespace nb::literals;

namespace {

PyType_Slot body_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(Body::get)},
                            {Py_bf_releasebuffer, reinterpret_cast<void*>(Body::release)},
                            {0, nullptr}};

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
        .def("newest_total", &RingReader::newest_total, "run"_a)
        .def_prop_ro("path", &RingReader::path);

    bind_builder(m);

    m.def("check_events", &check_events, "frame"_a, "expected"_a,
          "Reads every byte of a frame's events: (events, next serial number, events out of order, sum of words).");
    m.def("writer_pid", [](const std::string& path) { return Claim::holder(path, 0); }, "path"_a,
          "Process that holds the writer's place of a ring, 0 if none (or this one).");
    m.def("settle", &RingWriter::settle, "path"_a,
          "Closes the open frame of a ring whose writer is dead; True if there was one to care for.",
          nb::call_guard<nb::gil_scoped_release>());
    m.def("monotonic_ns", &monotonic_ns);
}
