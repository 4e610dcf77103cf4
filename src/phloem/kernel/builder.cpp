#include "builder.hpp"

#include <algorithm>
#include <stdexcept>

namespace phloem {

Builder::Builder(BuilderOptions options) : options_(std::move(options)) {
    if (options_.names.empty()) throw std::invalid_argument("a builder needs at least one source");
    if (options_.window <= options_.reorder) throw std::invalid_argument("window must be greater than reorder");
    sources_.resize(options_.names.size());
}

void Builder::begin_run(uint32_t run) {
    for (Source& s : sources_) {
        const uint64_t released = s.released;
        s = Source{};
        s.released = released;
    }
    marks_.clear();
    run_ = run;
    epoch_known_ = false;
    epoch_ = next_serial_ = events_built_ = events_incomplete_ = n_missed_ = 0;
    events_too_large_ = largest_refused_ = 0;
}

void Builder::add_frame(uint32_t source, uint32_t run, const uint8_t* body, size_t size, uint32_t n_events,
                        uint64_t sequence, uint64_t position) {
    Source& s = sources_.at(source);
    s.absent = false;
    s.fates.received += n_events;
    InputFrame frame{body, size, n_events, sequence, position, 0, 0, n_events};
    if (run != run_ || s.ended) {  // of another run: nothing of it may be built
        s.fates.quarantined += n_events;
        frame.next_index = n_events;
        frame.undecided = 0;
    }
    s.frames.push_back(frame);
    release_front(s);
}

void Builder::add_border(uint32_t source, uint64_t sequence, uint64_t position) {
    Source& s = sources_.at(source);
    s.frames.push_back({nullptr, 0, 0, sequence, position, 0, 0, 0});
    release_front(s);
}

bool Builder::all_read(uint32_t source) const {
    const Source& s = sources_.at(source);
    for (size_t i = s.reading; i < s.frames.size(); ++i)
        if (s.frames[i].next_index < s.frames[i].n_events) return false;
    return true;
}

void Builder::end_source(uint32_t source) {
    Source& s = sources_.at(source);
    s.ended = true;
}

void Builder::release_front(Source& s) {
    while (!s.frames.empty() && s.frames.front().undecided == 0) {
        s.released = s.frames.front().position;
        s.read_sequence = std::max(s.read_sequence, s.frames.front().sequence);
        s.frames.pop_front();
        ++s.first_frame;
        if (s.reading > 0) --s.reading;
    }
}

void Builder::decide(Source& s, uint64_t frame) {
    InputFrame& f = s.frames[frame - s.first_frame];
    if (--f.undecided == 0 && frame == s.first_frame) release_front(s);
}

// Nothing behind an event whose size cannot be believed can be found again in this frame.
void Builder::quarantine_rest(Source& s) {
    InputFrame& f = s.frames[s.reading];
    const uint32_t rest = f.n_events - f.next_index;
    s.fates.quarantined += rest;
    f.undecided -= rest;
    f.next_index = f.n_events;
    if (f.undecided == 0) release_front(s);
}

// The next fragment of the source that is a valid event, judged or not; false: all that is there has been read.
bool Builder::read_fragment(Source& s, Fragment& out) {
    while (s.reading < s.frames.size()) {
        InputFrame& f = s.frames[s.reading];
        if (f.next_index == f.n_events) {
            ++s.reading;
            continue;
        }
        s.read_sequence = f.sequence;
        const uint8_t* event = f.body + f.next_offset;
        const size_t available = f.size - f.next_offset;
        const size_t size = available < 16 ? 0 : align_up(16 + static_cast<size_t>(load_u32(event + 12)), 8);
        if (size == 0 || size > available) {
            quarantine_rest(s);
            continue;
        }
        const uint64_t number = s.first_frame + s.reading;
        const uint32_t index = f.next_index++;
        f.next_offset += size;
        const int64_t banks = banks_size_as_bank32a(event, size);
        if (banks < 0) {
            ++s.fates.quarantined;
            decide(s, number);
            continue;
        }
        out = {0, event, static_cast<uint32_t>(banks), load_u32(event + 20), number, index};
        return true;
    }
    return false;
}

// One source alone: is this fragment a duplicate, late, or to be passed on? Serial arithmetic is modulo 2^32.
bool Builder::judge(Source& s, Fragment& f) {
    const uint32_t serial = load_u32(f.event + 4);
    if (!s.started) {
        if (!epoch_known_) {
            epoch_known_ = true;
            epoch_ = (uint64_t{1} << 32) + serial;
        }
        s.started = true;
        s.highest = epoch_ + static_cast<int64_t>(static_cast<int32_t>(serial - static_cast<uint32_t>(epoch_)));
        f.serial = s.highest;
        // What came before the first one has not been seen: within reach of `reorder` it may still come, but
        // nothing is passed on from before serial number 0 of a run that began there.
        s.missed.emplace_back(s.highest - std::min<uint64_t>(options_.window, s.highest), s.highest - 1);
        ++n_missed_;
        s.next_pass = s.highest - std::min(serial, options_.reorder);
        if (f.serial < s.floor) {
            ++s.fates.late;
            return false;
        }
        return true;
    }
    const int64_t distance = static_cast<int32_t>(serial - static_cast<uint32_t>(s.highest));
    if (distance == 1 && s.missed.empty() && s.highest + 1 >= s.floor) {
        f.serial = ++s.highest;
        return true;
    }
    f.serial = s.highest + distance;
    if (distance > 0) {
        if (distance > 1) {
            s.missed.emplace_back(s.highest + 1, f.serial - 1);
            ++n_missed_;
        }
        s.highest = f.serial;
    } else {
        auto range = std::find_if(s.missed.begin(), s.missed.end(), [&](const std::pair<uint64_t, uint64_t>& r) {
            return r.first <= f.serial && f.serial <= r.second;
        });
        const bool in_window = f.serial + options_.window > s.highest;
        if (in_window && range == s.missed.end()) {
            ++s.fates.duplicate;
            return false;
        }
        if (range != s.missed.end()) {
            const auto [first, last] = *range;
            range = s.missed.erase(range);
            if (f.serial < last) range = s.missed.insert(range, {f.serial + 1, last});
            if (first < f.serial) s.missed.insert(range, {first, f.serial - 1});
            n_missed_ += size_t{f.serial < last} + size_t{first < f.serial} - 1;
        }
        if (!in_window || s.highest - f.serial > options_.reorder) {
            ++s.fates.late;
            return false;
        }
    }
    while (!s.missed.empty() && s.missed.front().second + options_.window <= s.highest) {
        s.missed.erase(s.missed.begin());
        --n_missed_;
    }
    if (f.serial < std::max(s.floor, s.next_pass)) {
        ++s.fates.late;
        return false;
    }
    return true;
}

// Passed on in rising order: what follows without a gap, and what nothing lower can come before any more. `all`:
// the source has ended and everything of it has been read, so that it holds nothing back.
void Builder::pass_on(Source& s, bool all) {
    while (s.ready < s.held.size()) {
        const uint64_t serial = s.held[s.ready].serial;
        const bool nothing_lower = serial <= std::max(s.next_pass, s.floor) || serial + options_.reorder <= s.highest;
        if (!nothing_lower && !all) return;
        s.next_pass = serial + 1;
        ++s.ready;
    }
}

bool Builder::pull(Source& s) {
    if (s.ready > 0) return true;
    Fragment f{};
    while (s.ready == 0) {
        if (!read_fragment(s, f)) {
            pass_on(s, s.ended);
            return s.ready > 0;
        }
        if (!judge(s, f)) {
            decide(s, f.frame);
            continue;
        }
        auto place = std::upper_bound(s.held.begin(), s.held.end(), f.serial,
                                      [](uint64_t serial, const Fragment& other) { return serial < other.serial; });
        s.held.insert(place, f);
        pass_on(s, false);
    }
    return true;
}

void Builder::drop_head(Source& s) {
    const uint64_t frame = s.held.front().frame;
    s.held.erase(s.held.begin());
    --s.ready;
    decide(s, frame);
}

namespace {

// Bank areas in BANK32A are multiples of 8 bytes; small ones are copied faster in line than by a call.
inline uint8_t* copy_words(uint8_t* out, const uint8_t* in, size_t size) {
    if (size > 256) {
        std::memcpy(out, in, size);
        return out + size;
    }
    size_t at = 0;
    for (; at + 16 <= size; at += 16) std::memcpy(out + at, in + at, 16);
    if (at < size) std::memcpy(out + at, in + at, 8);
    return out + size;
}

// The bank area of a valid BANK32A event without gaps, or -1: then the long way decides.
inline int64_t plain_banks_size(const uint8_t* event, const uint8_t* end) {
    if (end - event < 24) return -1;
    const size_t area = load_u32(event + 16), room = static_cast<size_t>(end - event) - 24;
    if (load_u32(event + 20) != 0x31 || area > room || load_u32(event + 12) != area + 8 || area % 8 != 0) return -1;
    for (size_t at = 0; at < area;) {
        if (area - at < 16) return -1;
        const size_t padded = align_up(size_t{load_u32(event + 24 + at + 8)}, 8);
        if (padded > area - at - 16) return -1;
        at += 16 + padded;
    }
    return static_cast<int64_t>(area);
}

}  // namespace

// The number of events for which every source has its next fragment at hand and nothing held back; 0: go the long way.
size_t Builder::enter_tracks() {
    tracks_.clear();
    const uint64_t expected = sources_.front().highest + 1;
    size_t most = SIZE_MAX;
    for (Source& s : sources_) {
        while (s.reading < s.frames.size() && s.frames[s.reading].next_index == s.frames[s.reading].n_events) ++s.reading;
        if (!s.started || !s.held.empty() || s.highest + 1 != expected || s.next_pass > expected || expected < s.floor ||
            s.reading == s.frames.size())
            return 0;
        const InputFrame& f = s.frames[s.reading];
        tracks_.push_back({&s, f.body + f.next_offset, f.body + f.size, 0});
        most = std::min<size_t>(most, f.n_events - f.next_index);
    }
    return most;
}

bool Builder::next_in_tracks(uint32_t serial, size_t& banks_size) {
    for (Track& track : tracks_) {
        const int64_t size = plain_banks_size(track.event, track.end);
        if (size < 0 || load_u32(track.event + 4) != serial) return false;
        track.banks_size = static_cast<uint32_t>(size);
        banks_size += track.banks_size;
    }
    return true;
}

void Builder::leave_tracks(size_t built) {
    for (const Track& track : tracks_) {
        Source& s = *track.source;
        InputFrame& f = s.frames[s.reading];
        f.next_index += static_cast<uint32_t>(built);
        f.next_offset = static_cast<size_t>(track.event - f.body);
        f.undecided -= static_cast<uint32_t>(built);
        s.read_sequence = f.sequence;
        s.highest += built;
        s.next_pass = s.highest + 1;
        s.fates.built += built;
        if (f.undecided == 0) release_front(s);
    }
    events_built_ += built;
    next_serial_ += built;
}

// What is in order in every source needs no judging: one look at each header and one copy of each byte.
size_t Builder::build_in_order(uint8_t*& p, const uint8_t* limit) {
    const size_t most = enter_tracks();
    if (most == 0) return 0;
    const uint64_t first = sources_.front().highest + 1;
    next_serial_ = first;
    size_t built = 0;
    for (; built < most; ++built) {
        size_t banks_size = 0;
        const uint32_t serial = static_cast<uint32_t>(first + built);
        if (!next_in_tracks(serial, banks_size) || 24 + banks_size > options_.max_event ||
            24 + banks_size > static_cast<size_t>(limit - p))
            break;
        const EventHeader header{options_.event_id, options_.trigger_mask, serial, load_u32(tracks_.front().event + 8),
                                 static_cast<uint32_t>(8 + banks_size)};
        std::memcpy(p, &header, sizeof header);
        store_u32(p + 16, static_cast<uint32_t>(banks_size));
        store_u32(p + 20, 0x31);
        p += 24;
        for (Track& track : tracks_) {
            p = copy_words(p, track.event + 24, track.banks_size);
            track.event += 24 + track.banks_size;
        }
    }
    leave_tracks(built);
    return built;
}

Builder::Built Builder::build(uint8_t* out, size_t room, size_t meta_room) {
    Built result;
    const uint32_t n = static_cast<uint32_t>(sources_.size());
    uint8_t* p = out;
    for (;;) {
        if (const size_t built = build_in_order(p, out + room)) {
            if (result.n_events == 0) result.first_serial = static_cast<uint32_t>(next_serial_ - built);
            result.n_events += static_cast<uint32_t>(built);
            result.next_serial = static_cast<uint32_t>(next_serial_);
        }
        uint64_t serial = UINT64_MAX;
        bool waits = false, all_ended = true;
        for (Source& s : sources_) {
            if (pull(s)) {
                serial = std::min(serial, s.held.front().serial);
                all_ended = false;
            } else if (!s.ended) {
                all_ended = false;
                if (!s.absent) waits = true;
            }
        }
        if (waits || serial == UINT64_MAX) {
            // A source that was closed for one event only (space) is past it once its floor is beyond.
            bool really = serial == UINT64_MAX;
            for (Source& s : sources_)
                if (s.ready == 0 && !s.ended && !s.absent && s.floor <= serial) really = true;
            if (really) {
                result.why = all_ended ? Stop::done : Stop::waiting;
                break;
            }
        }
        size_t banks = 0;
        uint32_t present = 0;
        for (Source& s : sources_)
            if (s.ready && s.held.front().serial == serial) {
                banks += s.held.front().banks_size;
                ++present;
            }
        const bool incomplete = present < n;
        if (incomplete && options_.on_incomplete == Policy::stop) {
            result.why = Stop::policy;
            break;
        }
        if (incomplete && options_.on_incomplete == Policy::build) banks += missing_bank_size(serial);
        const bool too_large = 24 + banks > options_.max_event;
        const bool discard = too_large || (incomplete && options_.on_incomplete == Policy::discard);
        const bool no_room = !discard && 24 + banks > room - static_cast<size_t>(p - out);
        if (no_room || checkpoint_bound() > meta_room) {
            result.why = Stop::room;
            result.wanted = 24 + banks;
            break;
        }
        if (too_large) {
            ++events_too_large_;
            largest_refused_ = std::max<uint64_t>(largest_refused_, 24 + banks);
        }
        if (!discard) {
            p = compose(p, serial, banks, incomplete);
            if (result.n_events++ == 0) result.first_serial = static_cast<uint32_t>(serial);
            result.next_serial = static_cast<uint32_t>(serial + 1);
            ++events_built_;
            events_incomplete_ += incomplete;
        }
        for (uint32_t i = 0; i < n; ++i) {
            Source& s = sources_[i];
            if (s.ready && s.held.front().serial == serial) {
                ++(discard ? s.fates.discarded : incomplete ? s.fates.incomplete : s.fates.built);
                drop_head(s);
            } else if (s.absent && !s.ended) {
                mark(i, Cause::silence, serial);
            }
        }
        next_serial_ = serial + 1;
    }
    result.bytes = static_cast<size_t>(p - out);
    return result;
}

uint8_t* Builder::compose(uint8_t* out, uint64_t serial, size_t banks_size, bool incomplete) {
    EventHeader header{options_.event_id, options_.trigger_mask, static_cast<uint32_t>(serial), 0,
                       static_cast<uint32_t>(8 + banks_size)};
    uint8_t* p = out + 24;
    bool first = true;
    for (const Source& s : sources_) {
        if (!s.ready || s.held.front().serial != serial) continue;
        const Fragment& f = s.held.front();
        if (first) header.time_stamp = load_u32(f.event + 8);  // of the first present source, never the clock
        first = false;
        p = copy_banks_as_bank32a(p, f.event, f.banks_size);
    }
    if (incomplete) p = put_missing_bank(p, serial);
    std::memcpy(out, &header, sizeof header);
    store_u32(out + 16, static_cast<uint32_t>(banks_size));
    store_u32(out + 20, 0x31);
    return p;
}

size_t Builder::missing_bank_size(uint64_t serial) const {
    size_t size = 0;
    for (size_t i = 0; i < sources_.size(); ++i)
        if (!sources_[i].ready || sources_[i].held.front().serial != serial) size += options_.names[i].size() + 1;
    return 16 + align_up(size, 8);
}

// MISS: the missing sources' names, each with a NUL.
uint8_t* Builder::put_missing_bank(uint8_t* p, uint64_t serial) const {
    uint8_t* data = p + 16;
    for (size_t i = 0; i < sources_.size(); ++i) {
        if (sources_[i].ready && sources_[i].held.front().serial == serial) continue;
        const std::string& name = options_.names[i];
        std::memcpy(data, name.c_str(), name.size() + 1);
        data += name.size() + 1;
    }
    const size_t size = static_cast<size_t>(data - p - 16), padded = align_up(size, 8);
    std::memcpy(p, "MISS", 4);
    store_u32(p + 4, 12);
    store_u32(p + 8, static_cast<uint32_t>(size));
    store_u32(p + 12, 0);
    std::memset(data, 0, padded - size);
    return p + 16 + padded;
}

bool Builder::has_open() const {
    return std::any_of(sources_.begin(), sources_.end(), [](const Source& s) { return !s.held.empty(); });
}

uint32_t Builder::oldest_serial() const {
    uint64_t oldest = UINT64_MAX;
    for (const Source& s : sources_)
        if (!s.held.empty()) oldest = std::min(oldest, s.held.front().serial);
    return static_cast<uint32_t>(oldest);
}

std::vector<uint32_t> Builder::waited_for() const {
    std::vector<uint32_t> found;
    uint64_t oldest = UINT64_MAX;
    for (const Source& s : sources_)
        if (!s.held.empty()) oldest = std::min(oldest, s.held.front().serial);
    if (oldest == UINT64_MAX) return found;
    for (uint32_t i = 0; i < sources_.size(); ++i) {
        const Source& s = sources_[i];
        if (s.ready == 0 && !s.ended && !s.absent && s.floor <= oldest) found.push_back(i);
    }
    return found;
}

// Closes everything up to `last` that the source has not passed on, numbers that no source had included: what
// comes of them now is late, and a rebuild must know it.
void Builder::mark(uint32_t source, Cause cause, uint64_t last) {
    Source& s = sources_[source];
    const uint64_t first = std::max(s.next_pass, s.floor);
    if (first > last) return;
    s.floor = last + 1;
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
    if (pull(s) || s.ended) return;
    if (!s.held.empty()) {  // held back for lower ones that do not come: give those up and pass it on
        mark(source, cause, s.held.front().serial - 1);
        pass_on(s, false);
        return;
    }
    if (cause == Cause::silence) {
        s.absent = true;
        return;
    }
    uint64_t oldest = UINT64_MAX;
    for (Source& other : sources_)
        if (pull(other)) oldest = std::min(oldest, other.held.front().serial);
    if (oldest != UINT64_MAX) mark(source, cause, oldest);
}

std::vector<Mark> Builder::take_marks() { return std::exchange(marks_, {}); }

size_t Builder::checkpoint_bound() const {
    return 24 + sources_.size() * (120 + 16 * (size_t{options_.reorder} + 2)) + 16 * (n_missed_ + sources_.size());
}

namespace {
template <class T>
void put(std::vector<uint8_t>& out, T value) {
    const auto* p = reinterpret_cast<const uint8_t*>(&value);
    out.insert(out.end(), p, p + sizeof value);
}
}  // namespace

// Layout: protocol/data.py, "Checkpoint".
std::vector<uint8_t> Builder::checkpoint(const std::vector<uint64_t>& generations) const {
    std::vector<uint8_t> out;
    put<uint32_t>(out, 1);
    put<uint32_t>(out, run_);
    put<uint64_t>(out, next_serial_);
    put<uint32_t>(out, static_cast<uint32_t>(sources_.size()));
    put<uint32_t>(out, 0);
    for (size_t i = 0; i < sources_.size(); ++i) {
        const Source& s = sources_[i];
        const bool reading = s.reading < s.frames.size();
        put<uint64_t>(out, i < generations.size() ? generations[i] : 0);
        put<uint64_t>(out, reading ? s.frames[s.reading].sequence : s.read_sequence + 1);
        put<uint32_t>(out, reading ? s.frames[s.reading].next_index : 0);
        put<uint32_t>(out, s.started | s.ended << 1 | s.absent << 2);
        for (uint64_t value : {s.highest, s.next_pass, s.floor, s.fates.received, s.fates.built, s.fates.incomplete,
                               s.fates.late, s.fates.duplicate, s.fates.discarded, s.fates.quarantined})
            put<uint64_t>(out, value);
        put<uint32_t>(out, static_cast<uint32_t>(s.held.size()));
        put<uint32_t>(out, static_cast<uint32_t>(s.missed.size()));
        for (const Fragment& f : s.held) {
            put<uint64_t>(out, s.frames[f.frame - s.first_frame].sequence);
            put<uint32_t>(out, f.index);
            put<uint32_t>(out, 0);
        }
        for (const auto& [first, last] : s.missed) {
            put<uint64_t>(out, first);
            put<uint64_t>(out, last);
        }
    }
    return out;
}

}  // namespace phloem
