// Judging, matching, copying. Pure: frames in, events out; no rings, no clock. What it must do is said in plain
// Python in reference.py, and the tests hold the two equal.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "frame.hpp"

namespace phloem {

enum class Policy : uint32_t { build = 0, discard = 1, stop = 2 };
enum class Cause : uint32_t { silence = 1, space = 2 };

struct BuilderOptions {
    std::vector<std::string> names;  // of the sources, in name order
    uint16_t event_id = 1;
    uint16_t trigger_mask = 0xFFFF;
    uint32_t reorder = 0;    // how far behind a source's own highest serial number a fragment may come
    uint32_t window = 4096;  // how far back a repeated serial number is known as a duplicate
    Policy on_incomplete = Policy::build;
    uint64_t max_event = UINT64_MAX;  // bytes; a larger one cannot leave, and is discarded
};

struct Fates {
    uint64_t received = 0, built = 0, incomplete = 0, late = 0, duplicate = 0, discarded = 0, quarantined = 0;
};

struct Mark {
    uint32_t source;
    Cause cause;
    uint64_t first, last;  // serial numbers, unwrapped; 0 if the source had passed on nothing before
};

struct InputFrame {
    const uint8_t* body;
    size_t size;
    uint32_t n_events;
    uint64_t sequence;
    uint64_t position;  // of the frame's end in the ring: what may be released once it is decided
    uint32_t next_index = 0;
    size_t next_offset = 0;
    uint32_t undecided;  // fragments that have no fate yet, those not looked at included
};

struct Fragment {
    uint64_t serial;  // unwrapped
    const uint8_t* event;
    uint32_t banks_size;  // bytes of its banks when written as BANK32A
    uint32_t flags;       // of its bank header
    uint64_t frame;       // number of the input frame, counted by the source
    uint32_t index;       // in the frame
};

class Builder {
  public:
    explicit Builder(BuilderOptions options);

    void begin_run(uint32_t run);
    // The bytes must stay where they are until released() has passed `position`.
    void add_frame(uint32_t source, uint32_t run, const uint8_t* body, size_t size, uint32_t n_events,
                   uint64_t sequence, uint64_t position);
    // A frame without fragments: it is released in its turn.
    void add_border(uint32_t source, uint64_t sequence, uint64_t position);
    void end_source(uint32_t source);
    bool all_read(uint32_t source) const;  // every fragment that was given has been looked at
    bool ended(uint32_t source) const { return sources_[source].ended; }
    size_t frames_waiting(uint32_t source) const { return sources_[source].frames.size(); }

    enum class Stop : uint32_t { waiting = 0, room = 1, done = 2, policy = 3 };
    struct Built {
        size_t bytes = 0;
        uint32_t n_events = 0;
        uint32_t first_serial = 0, next_serial = 0;
        Stop why = Stop::waiting;
        size_t wanted = 0;  // with Stop::room: bytes that the next event needs
    };
    // Builds events into `out` until it waits for a source, has no room (for them, or for a checkpoint of
    // `meta_room` bytes), or is done.
    Built build(uint8_t* out, size_t room, size_t meta_room);

    // Sources that the oldest open event waits for; empty if nothing is open.
    std::vector<uint32_t> waited_for() const;
    bool has_open() const;
    uint32_t oldest_serial() const;
    // Closes the oldest open event for source `source`: from now on it is past every event that opens, until it
    // sends again (silence), or past this one only (space).
    void close_without(uint32_t source, Cause cause);

    // Ring position up to which all frames of the source are decided.
    uint64_t released(uint32_t source) const { return sources_[source].released; }
    const Fates& fates(uint32_t source) const { return sources_[source].fates; }
    uint64_t events_built() const { return events_built_; }
    uint64_t events_incomplete() const { return events_incomplete_; }
    uint64_t events_too_large() const { return events_too_large_; }
    uint64_t largest_refused() const { return largest_refused_; }  // bytes
    uint32_t last_serial(uint32_t source) const { return static_cast<uint32_t>(sources_[source].highest); }
    std::vector<Mark> take_marks();
    std::vector<uint8_t> checkpoint(const std::vector<uint64_t>& generations) const;
    size_t checkpoint_bound() const;  // no checkpoint taken now is larger

  private:
    struct Source {
        std::deque<InputFrame> frames;
        uint64_t first_frame = 0;  // number of frames.front()
        size_t reading = 0;        // index in `frames` of the frame that is being read
        uint64_t read_sequence = 0;
        bool started = false, ended = false, absent = false;
        uint64_t highest = 0;    // serial number
        uint64_t next_pass = 0;  // all before it have been passed on or never will be
        uint64_t floor = 0;      // marks have closed all before it; what comes now is late
        std::vector<std::pair<uint64_t, uint64_t>> missed;  // ranges not seen within the window
        std::vector<Fragment> held;                         // out of order, rising; held[0, ready) are passed on
        size_t ready = 0;
        uint64_t released = 0;
        Fates fates;
    };

    // One source in the run of events that all sources have next.
    struct Track {
        Source* source;
        const uint8_t* event;
        const uint8_t* end;  // of the frame's body
        uint32_t banks_size;
    };
    size_t enter_tracks();
    void leave_tracks(size_t built);
    size_t build_in_order(uint8_t*& p, const uint8_t* limit);
    bool next_in_tracks(uint32_t serial, size_t& banks_size);

    bool pull(Source& s);  // makes held[0] the next fragment to match, if there is one
    bool read_fragment(Source& s, Fragment& out);
    bool judge(Source& s, Fragment& f);
    void pass_on(Source& s, bool all);
    void decide(Source& s, uint64_t frame);
    void quarantine_rest(Source& s);
    void release_front(Source& s);
    void drop_head(Source& s);
    uint8_t* compose(uint8_t* out, uint64_t serial, size_t banks_size, bool incomplete);
    size_t missing_bank_size(uint64_t serial) const;
    uint8_t* put_missing_bank(uint8_t* p, uint64_t serial) const;
    void mark(uint32_t source, Cause cause, uint64_t last);

    BuilderOptions options_;
    std::vector<Source> sources_;
    std::vector<Mark> marks_;
    std::vector<Track> tracks_;
    uint32_t run_ = 0;
    bool epoch_known_ = false;
    uint64_t epoch_ = 0;
    uint64_t next_serial_ = 0;
    uint64_t events_built_ = 0, events_incomplete_ = 0, events_too_large_ = 0, largest_refused_ = 0;
    size_t n_missed_ = 0;  // ranges in all sources
};

// Size of an event's banks written as BANK32A, or -1 if it is not a valid event of `available` bytes.
int64_t banks_size_as_bank32a(const uint8_t* event, size_t available);
uint8_t* copy_banks_as_bank32a(uint8_t* out, const uint8_t* event, uint32_t banks_size);

}  // namespace phloem
