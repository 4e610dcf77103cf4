// The builder's face to Python. No Python object is touched while the GIL is released.
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>

#include "bindings.hpp"
#include "builder.hpp"

using namespace phloem;
using namespace nb::literals;

namespace phloem {

namespace {

constexpr size_t MARKS_ROOM = 12 * 1024, SIDE_ROOM = 64 * 1024;
constexpr uint32_t NOT_THERE = UINT32_MAX;

template <class T>
using OneOrEach = std::variant<T, std::vector<T>>;

template <class T>
T of_source(const OneOrEach<T>& value, size_t i) {
    if (const T* one = std::get_if<T>(&value)) return *one;
    return std::get<std::vector<T>>(value).at(i);
}

template <class T>
void check_number(const OneOrEach<T>& value, size_t n) {
    const auto* each = std::get_if<std::vector<T>>(&value);
    if (each && each->size() != n) throw nb::value_error("one value for each source");
}

BuilderOptions options_of(const std::vector<std::string>& names, uint16_t event_id, uint16_t trigger_mask,
                          const OneOrEach<uint64_t>& reorder, uint32_t window,
                          const OneOrEach<uint32_t>& on_incomplete, uint64_t max_event,
                          const std::optional<std::vector<bool>>& required, bool by_time, uint64_t match_window,
                          const std::optional<std::vector<int64_t>>& offsets, uint32_t check, nb::bytes time_bank,
                          bool headers, bool side) {
    check_number(reorder, names.size());
    check_number(on_incomplete, names.size());
    if ((required && required->size() != names.size()) || (offsets && offsets->size() != names.size()))
        throw nb::value_error("one value for each source");
    if (check > 3) throw nb::value_error("check is 0 (off), 1 (continue), 2 (repair) or 3 (stop)");
    if (time_bank.size() != 4) throw nb::value_error("a bank name has 4 bytes");
    BuilderOptions o;
    for (size_t i = 0; i < names.size(); ++i) {
        const uint32_t policy = of_source(on_incomplete, i);
        if (policy > 2) throw nb::value_error("on_incomplete is 0 (build), 1 (discard) or 2 (stop)");
        o.sources.push_back({names[i], of_source(reorder, i), !required || (*required)[i],
                             static_cast<Policy>(policy), offsets ? (*offsets)[i] : 0});
    }
    o.event_id = event_id;
    o.trigger_mask = trigger_mask;
    o.window = window;
    o.max_event = max_event;
    o.by_time = by_time;
    o.match_window = match_window;
    o.check = static_cast<Check>(check);
    std::memcpy(o.time_bank.data(), time_bank.c_str(), 4);
    o.headers = headers;
    o.side = side;
    return o;
}

std::vector<uint64_t> times_of(nb::handle times) {
    if (times.is_none()) return {};
    BufferView view(times);
    if (view.size() % 8) throw nb::value_error("times: one uint64 per event");
    std::vector<uint64_t> out(view.size() / 8);
    if (!out.empty()) std::memcpy(out.data(), view.data(), view.size());
    return out;
}

// Fills the writer's open frame in place. Opens one where there is none; None: the ring is full.
nb::object build_into(Builder& builder, RingWriter& writer) {
    Builder::Built built;
    bool no_space = false;
    {
        nb::gil_scoped_release release;
        for (size_t at_least = 0, meta = 0;; at_least = built.wanted, meta = built.wanted_meta) {
            size_t room = 0, meta_room = 0;
            const size_t wanted = std::max(meta, builder.meta_bound() + SIDE_ROOM) + MARKS_ROOM;
            uint8_t* out = writer.open_body(at_least, wanted, room, meta_room);
            no_space = !out;
            if (no_space) break;
            built = builder.build(out, room, meta_room - std::min(meta_room, MARKS_ROOM));
            writer.fill(built.bytes, built.n_events, built.first_serial, built.next_serial);
            const bool fits = built.wanted <= room && built.wanted_meta + MARKS_ROOM <= meta_room;
            if (built.why != Builder::Stop::room || writer.open_events() || builder.has_side() || fits) break;
        }
    }
    if (no_space) return nb::none();
    return nb::make_tuple(static_cast<uint32_t>(built.why), built.n_events, built.bytes, built.wanted);
}

// Writes as many of the first `n` staged events as one frame holds; None: the ring is full.
nb::object write_staged(Builder& builder, RingWriter& writer, size_t n) {
    nb::gil_scoped_release release;
    const size_t wanted = builder.meta_bound() + SIDE_ROOM + MARKS_ROOM;
    const size_t most = writer.largest_body(wanted);
    size_t bytes = 0, count = 0;
    n = std::min(n, builder.n_staged());
    for (; count < n; ++count) {
        const size_t size = builder.leaves(count) ? builder.staged_size(count) : 0;
        if (count > 0 && bytes + size > most) break;
        bytes += size;
    }
    size_t room = 0, meta_room = 0;
    uint8_t* out = writer.open_body(bytes, wanted, room, meta_room);
    if (out) {
        const auto built = builder.write_staged(out, count);
        writer.fill(built.bytes, built.n_events, built.first_serial, built.next_serial);
    }
    nb::gil_scoped_acquire acquire;
    return out ? nb::cast(count) : nb::none();
}

// A row for each staged event and source: u32 present, u16 event id, u16 mask, u32 serial, time stamp, data size, 0.
nb::bytes staged_headers(const Builder& b) {
    const size_t width = b.options().sources.size();
    std::vector<uint32_t> words;
    words.reserve(b.n_staged() * width * 6);
    for (size_t i = 0; i < b.n_staged(); ++i)
        for (uint32_t s = 0; s < width; ++s) {
            const Fragment* f = b.staged_fragment(i, s);
            words.push_back(f ? 1 : 0);
            for (uint32_t at : {0u, 4u, 8u, 12u}) words.push_back(f ? load_u32(f->event + at) : 0);
            words.push_back(0);
        }
    return nb::bytes(reinterpret_cast<const char*>(words.data()), words.size() * 4);
}

// Of each staged event: u32 serial number, u32 incomplete.
nb::bytes staged_events(const Builder& b) {
    std::vector<uint32_t> words;
    for (size_t i = 0; i < b.n_staged(); ++i) {
        words.push_back(static_cast<uint32_t>(b.staged(i).serial));
        words.push_back(b.staged(i).incomplete);
    }
    return nb::bytes(reinterpret_cast<const char*>(words.data()), words.size() * 4);
}

nb::object staged_bank(const Builder& b, size_t i, uint32_t source, nb::bytes name) {
    const Fragment* f = b.staged_fragment(i, source);
    uint32_t tid = 0;
    size_t size = 0;
    if (name.size() != 4) throw nb::value_error("a bank name has 4 bytes");
    const uint8_t* data = f ? find_bank(f->event, name.c_str(), tid, size) : nullptr;
    if (!data) return nb::none();
    return nb::make_tuple(tid, nb::bytes(reinterpret_cast<const char*>(data), size));
}

// All banks of a staged fragment, in BANK32A; None: it is not there.
nb::object staged_area(const Builder& b, size_t i, uint32_t source) {
    const Fragment* f = b.staged_fragment(i, source);
    if (!f) return nb::none();
    std::vector<uint8_t> area(f->banks_size);
    copy_banks_as_bank32a(area.data(), f->event, f->banks_size);
    return nb::bytes(reinterpret_cast<const char*>(area.data()), area.size());
}

// One bank of all staged events of a source, back to back: (TID, bytes of each as u32, data); NOT_THERE: it has none.
nb::tuple gather_bank(const Builder& b, uint32_t source, nb::bytes name) {
    if (name.size() != 4) throw nb::value_error("a bank name has 4 bytes");
    std::vector<uint32_t> sizes;
    std::vector<uint8_t> data;
    uint32_t tid = 0;
    {
        const char* four = name.c_str();
        nb::gil_scoped_release release;
        for (size_t i = 0; i < b.n_staged(); ++i) {
            const Fragment* f = b.staged_fragment(i, source);
            size_t size = 0;
            const uint8_t* bank = f ? find_bank(f->event, four, tid, size) : nullptr;
            sizes.push_back(bank ? static_cast<uint32_t>(size) : NOT_THERE);
            if (bank) data.insert(data.end(), bank, bank + size);
        }
    }
    return nb::make_tuple(tid, nb::bytes(reinterpret_cast<const char*>(sizes.data()), sizes.size() * 4),
                          nb::bytes(reinterpret_cast<const char*>(data.data()), data.size()));
}

void set_outcome(Builder& b, size_t i, uint32_t outcome, nb::list banks) {
    if (outcome > 2) throw nb::value_error("an outcome is 0 (build), 1 (skip) or 2 (compose)");
    Staged& event = b.staged(i);
    event.outcome = static_cast<Staged::Outcome>(outcome);
    event.extra.clear();
    if (banks.size() == 0) return;
    BufferViews views(banks.size());
    for (const BankSpan& span : bank_spans(banks, views, 1)) append_bank(event.extra, span.name, span.tid, span.data, span.size);
}

// The same for all staged events; each bank holds one part for each event.
void set_outcomes(Builder& b, nb::object skip, bool compose, nb::list banks) {
    const size_t n = b.n_staged();
    if (n == 0) return;
    BufferViews views(banks.size() + 1);
    const auto spans = bank_spans(banks, views, n);
    const uint8_t* skipped = nullptr;
    if (!skip.is_none()) {
        const Py_buffer& view = views.add(skip);
        if (static_cast<size_t>(view.len) != n) throw nb::value_error("skip: one bool per event");
        skipped = static_cast<const uint8_t*>(view.buf);
    }
    nb::gil_scoped_release release;
    for (size_t i = 0; i < n; ++i) {
        Staged& event = b.staged(i);
        const auto outcome = compose ? Staged::Outcome::compose : Staged::Outcome::build;
        event.outcome = skipped && skipped[i] ? Staged::Outcome::skip : outcome;
        event.extra.clear();
        for (const BankSpan& span : spans) append_bank(event.extra, span.name, span.tid, span.data + i * span.size, span.size);
    }
}

nb::bytes bytes_of(const std::vector<uint8_t>& data) {
    return nb::bytes(reinterpret_cast<const char*>(data.data()), data.size());
}

nb::list marks_of(Builder& b) {
    nb::list out;
    for (const Mark& mark : b.take_marks())
        out.append(nb::make_tuple(mark.source, static_cast<uint32_t>(mark.cause), mark.first, mark.last));
    return out;
}

nb::list reports_of(Builder& b) {
    nb::list out;
    for (const Report& report : b.take_reports())
        out.append(nb::make_tuple(report.source, static_cast<uint32_t>(report.key),
                                  report.shift ? nb::cast(*report.shift) : nb::none()));
    return out;
}

void bind_input(nb::class_<Builder>& builder) {
    builder.def("begin_run", &Builder::begin_run, "run"_a)
        .def("add_frame",
             [](Builder& b, uint32_t source, const Frame& f, nb::object times) {
                 b.add_frame(source, f.header->run, f.bytes(), f.header->body_size, f.header->n_events,
                             f.header->sequence, f.end, times_of(times));
             },
             "source"_a, "frame"_a, "times"_a = nb::none())
        .def("add_bytes",  // whole events at 8-byte steps, which are copied
             [](Builder& b, uint32_t source, uint32_t run, nb::object body, uint32_t n_events, uint64_t sequence,
                nb::object times) {
                 BufferView view(body);
                 b.add_copy(source, run, view.data(), view.size(), n_events, sequence, times_of(times));
             },
             "source"_a, "run"_a, "body"_a, "n_events"_a, "sequence"_a, "times"_a = nb::none())
        .def("add_border",
             [](Builder& b, uint32_t source, const Frame& f) { b.add_border(source, f.header->sequence, f.end); },
             "source"_a, "frame"_a)
        .def("border_follows", &Builder::border_follows, "source"_a)
        .def("end_source", &Builder::end_source, "source"_a)
        .def("renumber", &Builder::renumber, "source"_a, "serial_number"_a, "event"_a)
        .def("give_mark",
             [](Builder& b, uint32_t source, uint32_t cause, uint64_t first, uint64_t last) {
                 b.give_mark(source, static_cast<Cause>(cause), first, last);
             },
             "source"_a, "cause"_a, "first"_a, "last"_a)
        .def("discard_rest", &Builder::discard_rest)
        .def("ended", &Builder::ended, "source"_a)
        .def("frames_unread", &Builder::frames_unread, "source"_a)
        .def("all_read", &Builder::all_read, "source"_a);
}

void bind_staging(nb::class_<Builder>& builder) {
    builder
        .def("stage",
             [](Builder& b, size_t max_bytes, size_t max_events) {
                 return static_cast<uint32_t>(b.stage(max_bytes, max_events, b.meta_bound() + SIDE_ROOM));
             },
             "max_bytes"_a, "max_events"_a, nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("n_staged", &Builder::n_staged)
        .def("staged_headers", &staged_headers)
        .def("staged_events", &staged_events)
        .def("staged_bank", &staged_bank, "event"_a, "source"_a, "name"_a)
        .def("staged_area", &staged_area, "event"_a, "source"_a)
        .def("gather_bank", &gather_bank, "source"_a, "name"_a)
        .def("set_outcome", &set_outcome, "event"_a, "outcome"_a, "banks"_a)
        .def("set_outcomes", &set_outcomes, "skip"_a.none(), "compose"_a, "banks"_a)
        .def("write_staged_into", &write_staged, "writer"_a, "n"_a)
        .def("write_staged",
             [](Builder& b, size_t n) {
                 n = std::min(n, b.n_staged());
                 size_t size = 0;
                 for (size_t i = 0; i < n; ++i) size += b.leaves(i) ? b.staged_size(i) : 0;
                 std::vector<uint8_t> out(size);
                 const auto built = b.write_staged(out.data(), n);
                 return nb::make_tuple(bytes_of(out), built.n_events);
             },
             "n"_a);
}

void bind_status(nb::class_<Builder>& builder) {
    builder.def("waited_for", &Builder::waited_for)
        .def_prop_ro("has_open", &Builder::has_open)
        .def_prop_ro("has_side", &Builder::has_side)
        .def_prop_ro("oldest_serial", &Builder::oldest_serial)
        .def("close_without",
             [](Builder& b, uint32_t source, uint32_t cause) { b.close_without(source, static_cast<Cause>(cause)); },
             "source"_a, "cause"_a)
        .def("released", &Builder::released, "source"_a)
        .def("restarted", &Builder::restarted, "source"_a)
        .def("absent", &Builder::absent, "source"_a)
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
        .def_prop_ro("not_kept", &Builder::not_kept)
        .def("last_serial", &Builder::last_serial, "source"_a)
        .def("highest_key", &Builder::highest_key, "source"_a)
        .def("backlog", &Builder::backlog, "source"_a)
        .def("take_marks", &marks_of)
        .def("take_reports", &reports_of)
        .def("take_side", [](Builder& b) { return nb::make_tuple(bytes_of(b.take_late()), bytes_of(b.take_quarantined())); })
        .def("checkpoint",
             [](const Builder& b, std::vector<uint64_t> generations) { return bytes_of(b.checkpoint(generations)); },
             "generations"_a);
}

}  // namespace

void bind_builder(nb::module_& m) {
    nb::class_<Builder> builder(m, "Builder");
    builder
        .def("__init__",
             [](Builder* self, std::vector<std::string> names, uint16_t event_id, uint16_t trigger_mask,
                OneOrEach<uint64_t> reorder, uint32_t window, OneOrEach<uint32_t> on_incomplete, uint64_t max_event,
                std::optional<std::vector<bool>> required, bool by_time, uint64_t match_window,
                std::optional<std::vector<int64_t>> offsets, uint32_t check, nb::bytes time_bank, bool headers,
                bool side) {
                 new (self) Builder(options_of(names, event_id, trigger_mask, reorder, window, on_incomplete, max_event,
                                               required, by_time, match_window, offsets, check, time_bank, headers, side));
             },
             "names"_a, "event_id"_a = 1, "trigger_mask"_a = 0xFFFF, "reorder"_a = uint64_t{0}, "window"_a = 4096,
             "on_incomplete"_a = 0u, "max_event"_a = UINT64_MAX, "required"_a = nb::none(), "by_time"_a = false,
             "match_window"_a = 0, "offsets"_a = nb::none(), "check"_a = 0, "time_bank"_a = nb::bytes("TIME", 4),
             "headers"_a = false, "side"_a = false)
        .def("build",
             [](Builder& b, size_t room) {
                 std::vector<uint8_t> out(room);
                 const auto built = b.build(out.data(), room, SIZE_MAX);
                 return nb::make_tuple(nb::bytes(out.data(), built.bytes), static_cast<uint32_t>(built.why),
                                       built.n_events, built.wanted);
             },
             "room"_a)
        .def("build_into", &build_into, "writer"_a);
    bind_input(builder);
    bind_staging(builder);
    bind_status(builder);
}

}  // namespace phloem
