// What is in order in every source needs no judging: one look at each header and one copy of each byte.
#include <algorithm>

#include "builder.hpp"

namespace phloem {

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
    if (timed_ || has_given_ || discarding_ || options_.headers) return 0;
    const uint64_t expected = sources_.front().highest + 1;
    size_t most = SIZE_MAX;
    for (Source& s : sources_) {
        while (s.reading < s.frames.size() && s.frames[s.reading].next_index == s.frames[s.reading].n_events) ++s.reading;
        if (!s.started || !s.held.empty() || s.highest + 1 != expected || s.next_pass > expected || expected < s.floor ||
            s.reading == s.frames.size() || s.restarted || s.shift != 0 || s.far)
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
        s.last_raw = static_cast<uint32_t>(s.highest);
        s.again = 0;
        s.next_pass = s.highest + 1;
        s.fates.built += built;
        if (f.undecided == 0) release_front(s);
    }
    events_built_ += built;
    count_ += built;
    next_serial_ += built;
}

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

}  // namespace phloem
