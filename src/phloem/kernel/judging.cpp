// One source alone: which of its fragments are valid, new, in time; which are passed on, in rising order.
#include <algorithm>

#include "builder.hpp"

namespace phloem {

namespace {
constexpr size_t SIDE_EVENT_BYTES = 512;  // what a side event has besides the fragment
constexpr uint32_t TID_UINT8 = 1, TID_STRING = 12;
}  // namespace

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

// ---------------------------------------------------------------- what does not pass

void Builder::quarantine(Source& s, const uint8_t* data, size_t size, uint32_t n_events, const char* why) {
    s.fates.quarantined += n_events;
    if (!options_.side) return;
    const std::string& name = options_.sources[number_of(s)].name;
    std::string text = name + '\0' + why + "; fragments: " + std::to_string(n_events) + '\0';
    size = std::min(size, QUARANTINE_BYTES);
    const size_t banks = 16 + align_up(size, 8) + 16 + align_up(text.size(), 8), begin = quarantined_.size();
    quarantined_.resize(begin + 24 + banks);
    uint8_t* p = put_event_header(quarantined_.data() + begin, {options_.event_id, 0, 0, 0, 0}, banks);
    if (size) std::memcpy(p + 16, data, size);
    p = close_bank(p, "QUAR", TID_UINT8, size);
    std::memcpy(p + 16, text.data(), text.size());
    close_bank(p, "WHYQ", TID_STRING, text.size());
}

// Nothing behind an event whose size cannot be believed can be found again in this frame.
void Builder::quarantine_rest(Source& s) {
    InputFrame& f = s.frames[s.reading];
    const uint32_t rest = f.n_events - f.next_index;
    quarantine(s, f.body + f.next_offset, f.size - f.next_offset, rest, "its size cannot be believed");
    f.undecided -= rest;
    f.next_index = f.n_events;
    if (f.undecided == 0) release_front(s);
}

void Builder::quarantine_far(Source& s, const Fragment& f) {
    std::vector<uint8_t> event(24 + f.banks_size);
    EventHeader header;
    std::memcpy(&header, f.event, sizeof header);
    copy_banks_as_bank32a(put_event_header(event.data(), header, f.banks_size), f.event, f.banks_size);
    quarantine(s, event.data(), event.size(), 1, "its serial number is far from those before and after it");
    decide(s, f.frame);
}

void Builder::drop_late(Source& s, const Fragment& f) {
    ++s.fates.late;
    const std::string& name = options_.sources[number_of(s)].name;
    const size_t banks = size_t{f.banks_size} + 16 + align_up(name.size() + 1, 8);
    if (options_.side && 24 + banks > options_.max_event) ++not_kept_;
    if (options_.side && 24 + banks <= options_.max_event) {
        const size_t begin = late_.size();
        late_.resize(begin + 24 + banks);
        EventHeader header;
        std::memcpy(&header, f.event, sizeof header);
        uint8_t* p = put_event_header(late_.data() + begin, header, banks);
        p = copy_banks_as_bank32a(p, f.event, f.banks_size);
        std::memcpy(p + 16, name.c_str(), name.size() + 1);
        close_bank(p, "LATE", TID_STRING, name.size() + 1);
    }
    decide(s, f.frame);
}

// ---------------------------------------------------------------- reading

// Whether what the next fragment may leave behind the events (a place in the checkpoint, a side event) has room.
bool Builder::has_room_for_next(const Source& s) {
    size_t cost = 64;
    if (options_.side && s.reading < s.frames.size()) {
        const InputFrame& f = s.frames[s.reading];
        const size_t left = f.size - std::min(f.size, f.next_offset);
        size_t size = left < 16 ? left : std::min(left, 16 + size_t{load_u32(f.body + f.next_offset + 12)});
        cost += std::min<size_t>(2 * size, options_.max_event) + SIDE_EVENT_BYTES;
    }
    const size_t bound = meta_bound();
    if (bound <= meta_room_ && cost <= meta_room_ - bound) return true;
    meta_wanted_ = bound + cost;
    return false;
}

// The next fragment of the source that is a valid event, judged or not; false: all that is there has been read.
bool Builder::read_fragment(Source& s, Fragment& out) {
    while (s.reading < s.frames.size()) {
        InputFrame& f = s.frames[s.reading];
        if (f.next_index == f.n_events) {
            ++s.reading;
            continue;
        }
        if (!has_room_for_next(s)) {
            full_ = true;
            return false;
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
        uint64_t time = NO_TIME;
        const char* wrong = banks < 0 ? "its banks do not fill it" : nullptr;
        if (!wrong && timed_) {
            uint32_t tid;
            size_t bytes = 0;
            if (!f.times.empty())
                time = f.times[index];
            else if (const uint8_t* data = find_bank(event, options_.time_bank.data(), tid, bytes); data && bytes >= 8)
                time = load_u64(data);
            if (time >= TIME_LIMIT) time = NO_TIME;
            if (time == NO_TIME && options_.by_time) wrong = "it has no time to be matched by";
            const int64_t offset = options_.sources[number_of(s)].offset_ns;
            if (time != NO_TIME) time = offset < 0 && time < uint64_t(-offset) ? 0 : time + static_cast<uint64_t>(offset);
        }
        if (wrong) {
            quarantine(s, event, size, 1, wrong);
            decide(s, number);
            continue;
        }
        out = {0, time, event, static_cast<uint32_t>(banks), number, index, 0};
        return true;
    }
    return false;
}

bool Builder::pull(Source& s, size_t wanted) {
    Fragment f{};
    while (s.ready < wanted) {
        if (read_fragment(s, f)) {
            take_in(s, f);
        } else if (full_) {
            return false;
        } else if (s.far && (s.border || s.ended)) {
            const Fragment far = *s.far;
            s.far.reset();
            judge_numbered(s, far);
        } else {
            pass_on(s, s.over());
            return s.ready >= wanted;
        }
    }
    return true;
}

// Whether the next fragment must say if this number is believed: a flipped bit would make all that follows late.
// Nothing is known before the first one but that counters begin at 0 or 1.
bool Builder::is_far(const Source& s, uint32_t serial) const {
    if (!s.started) return serial + s.shift - s.begins > options_.window;
    const auto beyond = static_cast<int32_t>(serial + s.shift - static_cast<uint32_t>(s.highest));
    return beyond > int64_t{options_.window} && !s.restarted;
}

// Its number without the wrap at 2^32: the one nearest to the source's highest, or to all others.
void Builder::judge_numbered(Source& s, Fragment f) {
    const uint32_t number = load_u32(f.event + 4) + s.shift;
    if (!epoch_known_) {  // far enough from 0 for all that is near; the same for all that begin near a wrap
        epoch_known_ = true;
        epoch_ = number + (number >= 0x80000000u ? uint64_t{1} << 32 : uint64_t{1} << 33);
    }
    const uint64_t base = s.started ? s.highest : epoch_;
    f.key = base + static_cast<int64_t>(static_cast<int32_t>(number - static_cast<uint32_t>(base)));
    judge_and_hold(s, f);
}

void Builder::take_in(Source& s, Fragment f) {
    s.last_raw = load_u32(f.event + 4);
    if (options_.by_time) {
        f.key = f.time;
        judge_and_hold(s, f);
        return;
    }
    unpair(s, s.last_raw);
    if (s.far) {
        const Fragment far = *s.far;
        s.far.reset();
        const int64_t apart = static_cast<int32_t>(s.last_raw - load_u32(far.event + 4));
        if (std::abs(apart) <= int64_t{options_.window})
            judge_numbered(s, far);
        else
            quarantine_far(s, far);
    }
    if (is_far(s, s.last_raw))
        s.far = f;
    else
        judge_numbered(s, f);
}

void Builder::judge_and_hold(Source& s, Fragment f) {
    if (!(options_.by_time ? judge_by_time(s, f) : judge(s, f))) return;
    f.moved = s.total_shift;
    f.pairing = s.pairing;
    auto place = s.held.end();
    if (!s.held.empty() && s.held.back().key > f.key)
        place = std::upper_bound(s.held.begin(), s.held.end(), f.key,
                                 [](uint64_t key, const Fragment& other) { return key < other.key; });
    s.held.insert(place, f);
    ++n_kept_;
    pass_on(s, s.restarted);
}

// ---------------------------------------------------------------- judging

bool Builder::is_given(const Source& s, uint64_t key) const {
    return std::any_of(s.given.begin(), s.given.end(),
                       [key](const auto& range) { return range.first <= key && key <= range.second; });
}

bool Builder::judge_by_time(Source& s, Fragment& f) {
    const std::pair<uint64_t, uint32_t> one{f.key, load_u32(f.event + 4)};
    const bool known = std::find(s.recent.begin(), s.recent.end(), one) != s.recent.end();
    s.recent.push_back(one);
    if (s.recent.size() > std::min<size_t>(options_.window, RECENT))
        s.recent.pop_front();
    else
        ++n_kept_;
    const uint64_t reorder = options_.sources[number_of(s)].reorder;
    if (!s.started) {
        s.started = true;
        s.highest = f.key;
        s.next_pass = f.key - std::min(f.key, reorder);
    }
    s.highest = std::max(s.highest, f.key);
    if (known) {
        ++s.fates.duplicate;
        decide(s, f.frame);
        return false;
    }
    if (s.highest - f.key > reorder || f.key < std::max(s.next_pass, s.floor)) {
        drop_late(s, f);
        return false;
    }
    return true;
}

void Builder::start(Source& s, const Fragment& f) {
    s.started = true;
    s.first = s.highest = f.key;
    // What came before the first one has not been seen: within reach of `reorder` it may still come, but nothing is
    // passed on from before serial number 0 of a run that began there.
    s.missed.emplace_back(f.key - std::min<uint64_t>(options_.window, f.key), f.key - 1);
    ++n_missed_;
    s.next_pass = f.key - std::min<uint64_t>(static_cast<uint32_t>(f.key), options_.sources[number_of(s)].reorder);
}

// A key is seen: it is no longer among those missed. `range`: where it is in `missed`, or the end.
void Builder::saw(Source& s, uint64_t key, size_t range) {
    if (key > s.highest) {
        if (key > s.highest + 1) {
            s.missed.emplace_back(s.highest + 1, key - 1);
            ++n_missed_;
        }
        s.highest = key;
    } else if (range < s.missed.size()) {
        const auto [first, last] = s.missed[range];
        auto at = s.missed.erase(s.missed.begin() + static_cast<std::ptrdiff_t>(range));
        if (key < last) at = s.missed.insert(at, {key + 1, last});
        if (first < key) s.missed.insert(at, {first, key - 1});
        n_missed_ += size_t{key < last} + size_t{first < key} - 1;
    }
    while (!s.missed.empty() && s.missed.front().second + options_.window <= s.highest) {
        s.missed.erase(s.missed.begin());
        --n_missed_;
    }
}

// One source alone: is this fragment a duplicate, late, or to be passed on? Serial arithmetic is modulo 2^32.
bool Builder::judge(Source& s, Fragment& f) {
    if (s.restarted) {
        drop_late(s, f);
        return false;
    }
    const bool is_first = !s.started;
    if (is_first) {
        start(s, f);
    } else if (f.key == s.highest + 1 && s.missed.empty() && !timed_ && !has_given_ && f.key >= s.floor) {
        s.highest = f.key;
        s.again = 0;
        return true;
    }
    size_t range = s.missed.size();
    if (f.key < s.highest)
        for (range = 0; range < s.missed.size(); ++range)
            if (s.missed[range].first <= f.key && f.key <= s.missed[range].second) break;
    const bool in_window = f.key + options_.window > s.highest;
    const bool again = !is_first && f.key <= s.highest && in_window && range == s.missed.size();
    if (pair_again(s, f, again || !in_window)) return true;
    count_again(s, f, again || !in_window);
    saw(s, f.key, range);
    if (again) {
        ++s.fates.duplicate;
        decide(s, f.frame);
        return false;
    }
    const uint64_t reorder = options_.sources[number_of(s)].reorder;
    if (s.highest - f.key > reorder || f.key < std::max(s.floor, s.next_pass)) {
        drop_late(s, f);
        return false;
    }
    return true;
}

// A number that goes back while the time goes on: the counter has restarted. It goes on from here, and the times say
// whether that is right.
bool Builder::pair_again(Source& s, Fragment& f, bool goes_back) {
    if (f.time == NO_TIME) return false;
    const uint64_t before = s.highest_time;
    if (before == NO_TIME || f.time > before) s.highest_time = f.time;
    if (options_.check != Check::repair || before == NO_TIME || f.time <= before || !goes_back) return false;
    uint64_t key = std::max(s.highest + 1, s.floor);
    for (const auto& [first, last] : s.given)
        if (first <= key && key <= last) key = last + 1;
    const int64_t shift = static_cast<int64_t>(key - f.key);
    s.shift += static_cast<uint32_t>(shift);
    s.total_shift += shift;
    ++s.pairing;
    s.paired = {load_u32(f.event + 4), shift, s.highest};
    s.again = 0;
    saw(s, key, s.missed.size());
    f.key = key;
    return true;
}

// A number that goes on as before the one that was paired again: that one was wrong, and no restart.
void Builder::unpair(Source& s, uint32_t serial) {
    if (!s.paired) return;
    const auto [number, delta, before] = *s.paired;
    s.paired.reset();
    const auto beyond = static_cast<int32_t>(serial + s.shift - static_cast<uint32_t>(delta) - static_cast<uint32_t>(before));
    if (serial == number + 1 || beyond <= 0 || beyond > int64_t{options_.window}) return;
    s.shift -= static_cast<uint32_t>(delta);
    s.total_shift -= delta;
    s.sure = std::max(s.sure, s.pairing);
}

// Late is what a mark of an earlier building has closed: by the key at which it would be built, which the times may have
// shifted since it was judged.
void Builder::drop_given(Source& s) {
    while (pull(s) && is_given(s, s.held.front().key)) drop_late(s, take_head(s));
}

// Numbers in a row that were there before: a counter that has restarted. What it sends is not matched any more. Not so
// if the times were there before as well: then fragments are sent again.
void Builder::count_again(Source& s, const Fragment& f, bool again) {
    const uint64_t key = f.key;
    if (!again || (f.time != NO_TIME && s.highest_time != NO_TIME && f.time < s.highest_time)) {
        s.again = 0;
        return;
    }
    s.again = s.again && key == s.again_next ? s.again + 1 : 1;
    s.again_next = key + 1;
    const uint64_t begins = key + 1 - s.again;
    const bool at_first = begins == s.first || static_cast<uint32_t>(begins) < 2;
    if (s.again >= (at_first ? RESTART_AT_FIRST : RESTART_RUN)) {
        s.restarted = true;
        pass_on(s, true);
    }
}

// Passed on in rising order: what follows without a gap, and what nothing lower can come before any more. `all`: no
// more of it will be passed on, so that it holds nothing back.
void Builder::pass_on(Source& s, bool all) {
    const uint64_t reorder = s.ready < s.held.size() ? options_.sources[number_of(s)].reorder : 0;
    while (s.ready < s.held.size()) {
        const uint64_t key = s.held[s.ready].key;
        const bool nothing_lower = key <= std::max(s.next_pass, s.floor) || key + reorder <= s.highest;
        if (!nothing_lower && !all) return;
        s.next_pass = options_.by_time ? key : key + 1;
        s.last_passed = key;
        ++s.ready;
    }
}

// ---------------------------------------------------------------- numbered anew

void Builder::renumber(uint32_t source, uint32_t serial_number, uint32_t event) {
    Source& s = sources_.at(source);
    s.shift = event - serial_number;
    s.begins = event;
    s.total_shift = 0;
    s.restarted = s.border = false;
    s.sure = s.pairing;
    s.paired.reset();
    s.again = 0;
}

// The times say that all that is not built yet belongs `shift` events later. What comes before `first` now is late.
void Builder::move(Source& s, int64_t shift, uint64_t first) {
    const auto by = static_cast<uint64_t>(shift);
    s.shift += static_cast<uint32_t>(shift);
    s.total_shift += shift;
    for (Fragment& f : s.held) {
        f.key += by;
        f.moved += shift;
    }
    if (s.paired) s.paired->before += by;
    for (auto& [from, to] : s.missed) {
        from += by;
        to += by;
    }
    s.highest += by;
    s.next_pass = std::max(s.next_pass + by, first);
    s.again = 0;
    while (!s.held.empty() && s.held.front().key < first) drop_late(s, take_head(s));
}

// The times do not say where it belongs either: nothing of it is built any more.
void Builder::give_up(Source& s) {
    s.restarted = true;
    while (!s.held.empty()) drop_late(s, take_head(s));
}

Fragment Builder::take_head(Source& s) {
    const Fragment head = s.held.front();
    s.held.pop_front();
    --n_kept_;
    if (s.ready > 0) --s.ready;
    return head;
}

}  // namespace phloem
