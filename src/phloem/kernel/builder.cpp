// Matching: which fragments are one event, when it closes, what leaves.
#include "builder.hpp"

#include <algorithm>
#include <stdexcept>

namespace phloem {

namespace {
constexpr uint32_t TID_UINT32 = 6, TID_STRING = 12;
constexpr size_t FRAG_ROW_BYTES = 24;
}  // namespace

Builder::Builder(BuilderOptions options) : options_(std::move(options)) {
    const auto& rules = options_.sources;
    if (rules.empty()) throw std::invalid_argument("a builder needs at least one source");
    for (const SourceRule& rule : rules)
        if (!options_.by_time && options_.window <= rule.reorder)
            throw std::invalid_argument("window must be greater than reorder");
    if (std::none_of(rules.begin(), rules.end(), [](const SourceRule& rule) { return rule.required; }))
        throw std::invalid_argument("at least one source must be required");
    match_window_ = options_.by_time ? options_.match_window : 0;
    timed_ = options_.by_time || options_.check != Check::off;
    sources_.resize(rules.size());
}

void Builder::begin_run(uint32_t run) {
    for (Source& s : sources_) {
        const uint64_t released = s.released;
        s = Source{};
        s.released = released;
    }
    marks_.clear();
    looked_.clear();
    reports_.clear();
    late_.clear();
    quarantined_.clear();
    staged_.clear();
    parts_.clear();
    tails_.clear();
    history_.clear();
    run_ = run;
    epoch_known_ = discarding_ = has_given_ = false;
    blind_ = -1;
    epoch_ = count_ = next_serial_ = events_built_ = events_incomplete_ = n_missed_ = n_kept_ = 0;
    events_too_large_ = largest_refused_ = not_kept_ = 0;
}

// ---------------------------------------------------------------- what comes

void Builder::add_frame(uint32_t source, uint32_t run, const uint8_t* body, size_t size, uint32_t n_events,
                        uint64_t sequence, uint64_t position, std::vector<uint64_t> times) {
    Source& s = sources_.at(source);
    if (!times.empty() && times.size() != n_events) throw std::invalid_argument("one time for each event");
    s.absent = Cause{};
    s.blind = false;
    s.fates.received += n_events;
    InputFrame frame{body, size, n_events, sequence, position, std::move(times), {}, 0, 0, n_events};
    if (run != run_ || s.ended) {  // nothing of it may be built
        quarantine(s, body, size, n_events, "of another run, or after the end of this one");
        frame.next_index = n_events;
        frame.undecided = 0;
    }
    s.frames.push_back(std::move(frame));
    release_front(s);
}

void Builder::add_copy(uint32_t source, uint32_t run, const uint8_t* body, size_t size, uint32_t n_events,
                       uint64_t sequence, std::vector<uint64_t> times) {
    auto copy = std::make_shared<const std::vector<uint8_t>>(body, body + size);
    Source& s = sources_.at(source);
    const size_t before = s.frames.size();
    add_frame(source, run, copy->data(), size, n_events, sequence, sequence + 1, std::move(times));
    if (s.frames.size() > before) s.frames.back().copy = std::move(copy);
}

void Builder::add_border(uint32_t source, uint64_t sequence, uint64_t position) {
    Source& s = sources_.at(source);
    s.border = s.blind = false;
    s.absent = Cause{};  // it is back, if it was away
    s.frames.push_back({nullptr, 0, 0, sequence, position, {}, {}, 0, 0, 0});
    release_front(s);
}

bool Builder::all_read(uint32_t source) const {
    const Source& s = sources_.at(source);
    if (s.far) return false;
    for (size_t i = s.reading; i < s.frames.size(); ++i)
        if (s.frames[i].next_index < s.frames[i].n_events) return false;
    return true;
}

void Builder::end_source(uint32_t source) { sources_.at(source).ended = true; }

void Builder::give_mark(uint32_t source, Cause cause, uint64_t first, uint64_t last) {
    Source& s = sources_.at(source);
    has_given_ = true;
    if (cause == Cause::check)
        s.given_blind.emplace_back(first, last);
    else
        s.given.emplace_back(first, last);
}

size_t Builder::backlog(uint32_t source) const {
    size_t n = 0;
    for (const InputFrame& frame : sources_.at(source).frames) n += frame.undecided;
    return n;
}

// ---------------------------------------------------------------- what leaves

uint64_t Builder::oldest_key() const {
    uint64_t oldest = UINT64_MAX;
    for (const Source& s : sources_)
        if (!s.held.empty()) oldest = std::min(oldest, s.held.front().key);
    return oldest;
}

// The next event, if every source is in it or past it and nothing speaks against it; else `result` says why not.
bool Builder::find_next(Open& open, Built& result) {
    for (;;) {
        full_ = false;
        bool all_ended = true;
        open = {UINT64_MAX, 0, true, Policy::build};
        for (Source& s : sources_) {
            if (has_given_) drop_given(s);
            if (pull(s)) open.key = std::min(open.key, s.held.front().key);
            all_ended = all_ended && s.ended && !s.ready;
        }
        result.why = full_ ? Stop::room : open.key == UINT64_MAX && all_ended ? Stop::done : Stop::waiting;
        result.wanted_meta = full_ ? meta_wanted_ : 0;
        if (full_ || open.key == UINT64_MAX) return false;
        const uint64_t last = open.key + match_window_;
        for (const Source& s : sources_)
            if (may_still_bring(s, last)) return false;
        for (size_t i = 0; i < sources_.size(); ++i) {
            const Source& s = sources_[i];
            if (takes(s, open.key)) open.banks += s.held.front().banks_size;
            if (!is_missing(s, options_.sources[i], open.key)) continue;
            open.complete = false;
            open.policy = std::max(open.policy, options_.sources[i].on_incomplete);
        }
        if (open.policy == Policy::stop && !discarding_) {
            result.why = Stop::policy;
            return false;
        }
        const Verdict verdict = check(open.key);
        if (verdict == Verdict::fine) return true;
        if (verdict == Verdict::again) continue;
        result.why = full_ ? Stop::room : verdict == Verdict::stop ? Stop::shifted : Stop::waiting;
        result.wanted_meta = full_ ? meta_wanted_ : 0;
        return false;
    }
}

void Builder::count_too_large(size_t size) {
    ++events_too_large_;
    largest_refused_ = std::max<uint64_t>(largest_refused_, size);
}

// The open event has left, or is discarded: its fragments have their fate, unless they are staged.
void Builder::leave(const Open& open, bool discard, bool incomplete, bool staged) {
    if (checked_time_ != NO_TIME) {
        history_.emplace_back(open.key, checked_time_);
        if (history_.size() > LOOK_EVENTS) history_.pop_front();
    }
    for (uint32_t i = 0; i < sources_.size(); ++i) {
        Source& s = sources_[i];
        if (takes(s, open.key)) {
            if (staged) {
                take_head(s);
                continue;
            }
            ++(discard ? s.fates.discarded : incomplete ? s.fates.incomplete : s.fates.built);
            decide(s, take_head(s).frame);
        } else if (s.absent != Cause{} && !s.over()) {
            mark(i, s.absent, open.key + match_window_);
        }
    }
    next_serial_ = serial_of(open) + 1;
    ++count_;
}

Builder::Built Builder::build(uint8_t* out, size_t room, size_t meta_room) {
    Built result;
    Open open;
    meta_room_ = meta_room;
    blind_ = -1;
    uint8_t* p = out;
    for (;;) {
        if (const size_t built = build_in_order(p, out + room)) {
            if (result.n_events == 0) result.first_serial = static_cast<uint32_t>(next_serial_ - built);
            result.n_events += static_cast<uint32_t>(built);
            result.next_serial = static_cast<uint32_t>(next_serial_);
        }
        if (!find_next(open, result)) break;
        const size_t tail = tail_size(open), size = 24 + open.banks + tail;
        const bool too_large = size > options_.max_event;
        const bool discard = too_large || open.policy == Policy::discard || discarding_;
        if (!discard && size > room - static_cast<size_t>(p - out)) {
            result.why = Stop::room;
            result.wanted = size;
            break;
        }
        if (too_large) count_too_large(size);
        if (!discard) {
            const uint64_t serial = serial_of(open);
            p = compose(p, open, tail);
            if (result.n_events++ == 0) result.first_serial = static_cast<uint32_t>(serial);
            result.next_serial = static_cast<uint32_t>(serial + 1);
            ++events_built_;
            events_incomplete_ += !open.complete;
        }
        leave(open, discard, !open.complete);
    }
    result.bytes = static_cast<size_t>(p - out);
    return result;
}

// ---------------------------------------------------------------- composing

// Of the first present source in name order, never the clock.
uint32_t Builder::first_time_stamp(uint64_t key) const {
    for (const Source& s : sources_)
        if (takes(s, key)) return load_u32(s.held.front().event + 8);
    return 0;
}

uint8_t* Builder::compose(uint8_t* out, const Open& open, size_t tail) {
    const size_t banks = open.banks + tail;
    uint8_t* p = put_event_header(out,
                                  {options_.event_id, options_.trigger_mask, static_cast<uint32_t>(serial_of(open)),
                                   first_time_stamp(open.key), 0},
                                  banks);
    for (const Source& s : sources_)
        if (takes(s, open.key)) p = copy_banks_as_bank32a(p, s.held.front().event, s.held.front().banks_size);
    return tail ? put_tail(p, open) : p;
}

// The missing sources' names, each with a NUL.
std::string Builder::missing_names(uint64_t key) const {
    std::string names;
    for (size_t i = 0; i < sources_.size(); ++i)
        if (is_missing(sources_[i], options_.sources[i], key)) names += options_.sources[i].name + '\0';
    return names;
}

// Who is off or was moved, and by how many events; a question mark where nobody knows.
std::string Builder::shift_names(uint64_t key) const {
    std::string texts;
    if (options_.check == Check::off) return texts;
    for (size_t i = 0; i < sources_.size(); ++i) {
        const Source& s = sources_[i];
        if (!takes(s, key) || s.told == 0) continue;
        texts.append(options_.sources[i].name).append(s.told && *s.told > 0 ? " +" : " ");
        texts.append(s.told ? std::to_string(*s.told) : "?").push_back('\0');
    }
    return texts;
}

size_t Builder::tail_size(const Open& open) const {
    size_t size = 0;
    if (options_.headers) {
        size += 16;
        for (const Source& s : sources_) size += takes(s, open.key) ? FRAG_ROW_BYTES : 0;
    }
    for (const size_t names : {open.complete ? 0 : missing_names(open.key).size(), shift_names(open.key).size()})
        if (names) size += 16 + align_up(names, 8);
    return size;
}

uint8_t* Builder::put_names(uint8_t* p, const char* name, const std::string& text) const {
    if (text.empty()) return p;
    std::memcpy(p + 16, text.data(), text.size());
    return close_bank(p, name, TID_STRING, text.size());
}

uint8_t* Builder::put_tail(uint8_t* p, const Open& open) const {
    if (options_.headers) {
        uint8_t* row = p + 16;
        for (uint32_t i = 0; i < sources_.size(); ++i) {
            if (!takes(sources_[i], open.key)) continue;
            const uint8_t* event = sources_[i].held.front().event;
            for (uint32_t word : {i, uint32_t{load_u16(event)}, uint32_t{load_u16(event + 2)}, load_u32(event + 4),
                                  load_u32(event + 8), load_u32(event + 12)}) {
                store_u32(row, word);
                row += 4;
            }
        }
        p = close_bank(p, "FRAG", TID_UINT32, static_cast<size_t>(row - p - 16));
    }
    if (!open.complete) p = put_names(p, "MISS", missing_names(open.key));
    return put_names(p, "SHFT", shift_names(open.key));
}

// ---------------------------------------------------------------- what timing forces

bool Builder::has_open() const { return oldest_key() != UINT64_MAX; }

uint32_t Builder::oldest_serial() const {
    return static_cast<uint32_t>(options_.by_time ? count_ : oldest_key());
}

std::vector<uint32_t> Builder::waited_for() const {
    if (blind_ >= 0) return {static_cast<uint32_t>(blind_)};
    std::vector<uint32_t> found;
    const uint64_t oldest = oldest_key();
    if (oldest == UINT64_MAX) return found;
    for (uint32_t i = 0; i < sources_.size(); ++i)
        if (may_still_bring(sources_[i], oldest + match_window_)) found.push_back(i);
    return found;
}

// Closes everything up to `last` that the source has not passed on, numbers that no source had included: what
// comes of them now is late, and a rebuild must know it.
void Builder::mark(uint32_t source, Cause cause, uint64_t last) {
    Source& s = sources_[source];
    uint64_t first = std::max(s.next_pass, s.floor);
    if (first > last) return;
    s.floor = last + 1;
    if (options_.by_time && first == s.last_passed) ++first;  // what was passed on is not closed
    for (auto m = marks_.rbegin(); m != marks_.rend(); ++m) {
        if (m->source != source) continue;
        if (m->cause == cause && m->last + 1 == first) {
            m->last = last;
            return;
        }
        break;
    }
    marks_.push_back({source, cause, first, last});
}

void Builder::close_without(uint32_t source, Cause cause) {
    Source& s = sources_.at(source);
    if (blind_ == source) {
        s.blind = true;
        blind_ = -1;
        return;
    }
    meta_room_ = SIZE_MAX;
    if (pull(s) || s.over()) return;
    if (!s.held.empty()) {  // held back for lower ones that do not come: give those up and pass it on
        mark(source, cause, s.held.front().key - 1);
        pass_on(s, false);
        return;
    }
    if (cause != Cause::space) {
        s.absent = cause;
        return;
    }
    uint64_t oldest = UINT64_MAX;
    for (Source& other : sources_)
        if (pull(other)) oldest = std::min(oldest, other.held.front().key);
    if (oldest != UINT64_MAX) mark(source, cause, oldest + match_window_);
}

std::vector<Mark> Builder::take_marks() { return std::exchange(marks_, {}); }

}  // namespace phloem
