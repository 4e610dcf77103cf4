// Judging, matching, copying. Pure: frames in, events out; no rings, no clock. What it must do is said in plain
// Python in reference/, and the tests hold the two equal. judging.cpp: one source alone; builder.cpp: matching and
// composing; in_order.cpp: the same, fast, for what is in order; check.cpp: serial numbers against times;
// staging.cpp: events that user code sees before they leave; checkpoint.cpp: all of it as bytes.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "frame.hpp"

namespace phloem {

enum class Policy : uint32_t { build = 0, discard = 1, stop = 2 };
enum class Cause : uint32_t { silence = 1, space = 2, optional = 3, check = 4 };
enum class Check : uint32_t { off = 0, go_on = 1, repair = 2, stop = 3 };

constexpr uint64_t NO_TIME = UINT64_MAX;
constexpr uint64_t TIME_LIMIT = uint64_t{1} << 62;  // ns, 146 years: a later time is damaged, and sums of times would wrap
constexpr size_t RECENT = 256;       // matched by time: how many of the last fragments are known as duplicates
constexpr size_t LOOK_EVENTS = 256;  // so far a shift is looked for, in both directions
constexpr uint32_t RESTART_RUN = 64, RESTART_AT_FIRST = 2;  // numbers seen again in a row: the counter has restarted
constexpr size_t QUARANTINE_BYTES = 64 << 10;               // of what is not an event, so much is kept

struct SourceRule {
    std::string name;
    uint64_t reorder = 0;  // how far behind its own highest serial number (time in ns) a fragment may come
    bool required = true;
    Policy on_incomplete = Policy::build;  // what is done with an event in which it is missing
    int64_t offset_ns = 0;                 // added to its times
};

struct BuilderOptions {
    std::vector<SourceRule> sources;  // in name order
    uint16_t event_id = 1;
    uint16_t trigger_mask = 0xFFFF;
    uint32_t window = 4096;            // how far back a repeated serial number is known as a duplicate
    uint64_t max_event = UINT64_MAX;   // bytes; a larger one cannot leave, and is discarded
    bool by_time = false;              // matched by time instead of serial number
    uint64_t match_window = 0;         // ns: how far times may lie apart that belong together
    Check check = Check::off;          // of serial numbers by times
    std::array<char, 4> time_bank{'T', 'I', 'M', 'E'};
    bool headers = false;  // a bank FRAG keeps the fragments' headers
    bool side = false;     // late fragments and those in quarantine are kept
};

struct Fates {
    uint64_t received = 0, built = 0, incomplete = 0, late = 0, duplicate = 0, discarded = 0, quarantined = 0;
};

struct Mark {
    uint32_t source;
    Cause cause;
    uint64_t first, last;  // keys; first is 0 if the source had passed on nothing before
};

struct Report {
    uint32_t source;
    uint64_t key;
    std::optional<int64_t> shift;  // none: nobody knows
};

struct InputFrame {
    const uint8_t* body;
    size_t size;
    uint32_t n_events;
    uint64_t sequence;
    uint64_t position;  // of the frame's end in the ring: what may be released once it is decided
    std::vector<uint64_t> times;  // of its events, if they do not come from a bank
    std::shared_ptr<const std::vector<uint8_t>> copy;  // where the bytes are, if they are not in a ring
    uint32_t next_index = 0;
    size_t next_offset = 0;
    uint32_t undecided;  // fragments that have no fate yet, those not looked at included
};

struct Fragment {
    uint64_t key;  // what it is matched by: unwrapped serial number, or time
    uint64_t time;
    const uint8_t* event;
    uint32_t banks_size;  // bytes of its banks when written as BANK32A
    uint64_t frame;       // number of the input frame, counted by the source
    uint32_t index;       // in the frame
    int64_t moved = 0;    // by how much the times have shifted it
    uint32_t pairing = 0;  // after how many restarts of its counter, as far as they are known
};

// An event that user code sees before it leaves.
struct Staged {
    uint64_t serial;
    uint32_t time_stamp;
    bool incomplete;
    uint32_t tail_size;     // bytes of FRAG, MISS, SHFT
    size_t tail;            // where they are in tails_
    size_t banks_size = 0;  // of all fragments
    enum class Outcome : uint32_t { build = 0, skip = 1, compose = 2 } outcome = Outcome::build;
    std::vector<uint8_t> extra;  // banks of the user, in BANK32A
};

class Builder {
  public:
    explicit Builder(BuilderOptions options);

    void begin_run(uint32_t run);
    // The bytes must stay where they are until released() has passed `position`.
    void add_frame(uint32_t source, uint32_t run, const uint8_t* body, size_t size, uint32_t n_events,
                   uint64_t sequence, uint64_t position, std::vector<uint64_t> times = {});
    // The same with bytes that are copied; its position is sequence + 1.
    void add_copy(uint32_t source, uint32_t run, const uint8_t* body, size_t size, uint32_t n_events, uint64_t sequence,
                  std::vector<uint64_t> times);
    // Something else than fragments is next: what waits for the next fragment to be believed need not any more.
    void border_follows(uint32_t source) { sources_.at(source).border = true; }
    // A frame without fragments: it is released in its turn.
    void add_border(uint32_t source, uint64_t sequence, uint64_t position);
    void end_source(uint32_t source);
    void renumber(uint32_t source, uint32_t serial_number, uint32_t event);
    void give_mark(uint32_t source, Cause cause, uint64_t first, uint64_t last);
    void discard_rest() { discarding_ = true; }
    bool all_read(uint32_t source) const;  // every fragment that was given has been looked at
    bool ended(uint32_t source) const { return sources_[source].ended; }
    size_t frames_unread(uint32_t source) const { return sources_[source].frames.size() - sources_[source].reading; }

    enum class Stop : uint32_t { waiting = 0, room = 1, done = 2, policy = 3, shifted = 4 };
    struct Built {
        size_t bytes = 0;
        uint32_t n_events = 0;
        uint32_t first_serial = 0, next_serial = 0;
        Stop why = Stop::waiting;
        size_t wanted = 0;       // with Stop::room: bytes that the next event needs
        size_t wanted_meta = 0;  // and that go behind the events
    };
    // Builds events into `out` until it waits for a source, has no room (for them, or for what goes behind them in
    // `meta_room` bytes), or is done.
    Built build(uint8_t* out, size_t room, size_t meta_room);

    // The same for user code: up to `max_events` of `max_bytes` are matched and kept until they are written.
    Stop stage(size_t max_bytes, size_t max_events, size_t meta_room);
    size_t n_staged() const { return staged_.size(); }
    const Staged& staged(size_t i) const { return staged_.at(i); }
    Staged& staged(size_t i) { return staged_.at(i); }
    const Fragment* staged_fragment(size_t i, uint32_t source) const;  // null: it is not there
    size_t staged_size(size_t i) const;                                // bytes of the event as it will leave
    bool leaves(size_t i) const;
    // Writes the first `n` of them, which must fit.
    Built write_staged(uint8_t* out, size_t n);

    // Sources that the oldest open event waits for; empty if nothing is open.
    std::vector<uint32_t> waited_for() const;
    bool has_open() const;
    uint32_t oldest_serial() const;
    // Closes the oldest open event for source `source`: from now on it is past every event that opens, until it
    // sends again, or past this one only (space).
    void close_without(uint32_t source, Cause cause);

    // Ring position up to which all frames of the source are decided.
    uint64_t released(uint32_t source) const { return sources_[source].released; }
    const Fates& fates(uint32_t source) const { return sources_[source].fates; }
    bool restarted(uint32_t source) const { return sources_.at(source).restarted; }
    bool absent(uint32_t source) const { return sources_.at(source).absent != Cause{}; }
    uint64_t events_built() const { return events_built_; }
    uint64_t events_incomplete() const { return events_incomplete_; }
    uint64_t events_too_large() const { return events_too_large_; }
    uint64_t largest_refused() const { return largest_refused_; }  // bytes
    uint64_t not_kept() const { return not_kept_; }                // late fragments too large for a frame
    uint32_t last_serial(uint32_t source) const { return sources_[source].last_raw; }
    uint64_t highest_key(uint32_t source) const { return sources_[source].highest; }
    size_t backlog(uint32_t source) const;  // fragments that came and have no fate
    std::vector<Mark> take_marks();
    std::vector<Report> take_reports() { return std::exchange(reports_, {}); }
    bool has_side() const { return !late_.empty() || !quarantined_.empty(); }
    std::vector<uint8_t> take_late() { return std::exchange(late_, {}); }
    std::vector<uint8_t> take_quarantined() { return std::exchange(quarantined_, {}); }
    std::vector<uint8_t> checkpoint(const std::vector<uint64_t>& generations) const;
    size_t meta_bound() const;  // nothing that goes behind the events now is larger
    const BuilderOptions& options() const { return options_; }

  private:
    struct Source {
        std::deque<InputFrame> frames;
        uint64_t first_frame = 0;  // number of frames.front()
        size_t reading = 0;        // index in `frames` of the frame that is being read
        uint64_t read_sequence = 0;
        bool started = false, ended = false, border = false;
        bool restarted = false;  // its counter has, and nobody knows which number is which event
        bool blind = false;      // silent: nothing is looked up in it
        Cause absent{};          // why it is waited for no longer, until it sends again
        uint32_t begins = 0;     // its first number is believed at once if it is not far beyond this one
        uint32_t shift = 0;      // added to its serial numbers
        int64_t total_shift = 0;
        uint32_t pairing = 0, sure = 0;  // restarts paired again: how many, up to which the times have agreed
        struct Paired {
            uint32_t number;  // as sent
            int64_t delta;
            uint64_t before;  // the highest key before it
        };
        std::optional<Paired> paired;  // the last fragment was
        std::optional<int64_t> told = 0;  // of its shift; none: nobody knows it
        uint64_t first = 0, highest = 0;  // keys
        uint64_t highest_time = NO_TIME;
        uint32_t last_raw = 0;   // serial number as sent
        uint64_t next_pass = 0;  // all before it have been passed on or never will be
        uint64_t last_passed = NO_TIME;
        uint64_t floor = 0;      // marks have closed all before it; what comes now is late
        uint32_t again = 0;      // so many numbers in a row were seen before
        uint64_t again_next = 0;
        std::vector<std::pair<uint64_t, uint64_t>> missed;  // ranges not seen within the window
        std::vector<std::pair<uint64_t, uint64_t>> given;   // ranges that a mark of an earlier building has closed
        std::vector<std::pair<uint64_t, uint64_t>> given_blind;  // (event, what it was looked up to), in vain
        std::deque<std::pair<uint64_t, uint32_t>> recent;  // by time: (key, serial number)
        std::optional<Fragment> far;  // far beyond its neighbours: what comes next says whether it is believed
        std::deque<Fragment> held;    // rising; held[0, ready) are passed on
        size_t ready = 0;
        uint64_t released = 0;
        Fates fates;
        bool is_unsure() const { return held.front().pairing > sure; }
        void agrees() { sure = std::max(sure, held.front().pairing); }
        bool over() const { return ended || restarted; }
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

    // judging.cpp
    bool pull(Source& s, size_t wanted = 1);  // makes held[wanted - 1] one that is passed on, if there is one
    bool read_fragment(Source& s, Fragment& out);
    bool has_room_for_next(const Source& s);
    void take_in(Source& s, Fragment f);
    void judge_and_hold(Source& s, Fragment f);
    bool judge(Source& s, Fragment& f);
    bool judge_by_time(Source& s, Fragment& f);
    void start(Source& s, const Fragment& f);
    bool pair_again(Source& s, Fragment& f, bool goes_back);
    void count_again(Source& s, const Fragment& f, bool again);
    void saw(Source& s, uint64_t key, size_t range);
    bool is_given(const Source& s, uint64_t key) const;
    bool is_far(const Source& s, uint32_t serial) const;
    void unpair(Source& s, uint32_t serial);
    void drop_given(Source& s);
    void judge_numbered(Source& s, Fragment f);
    void pass_on(Source& s, bool all);
    void decide(Source& s, uint64_t frame);
    void release_front(Source& s);
    void move(Source& s, int64_t shift, uint64_t first);
    void give_up(Source& s);
    void drop_late(Source& s, const Fragment& f);
    void quarantine(Source& s, const uint8_t* data, size_t size, uint32_t n_events, const char* why);
    void quarantine_rest(Source& s);
    void quarantine_far(Source& s, const Fragment& f);
    uint32_t number_of(const Source& s) const { return static_cast<uint32_t>(&s - sources_.data()); }

    // builder.cpp
    struct Open {  // the event that leaves next
        uint64_t key = 0;
        size_t banks = 0;
        bool complete = true;
        Policy policy = Policy::build;
    };
    bool find_next(Open& open, Built& result);
    bool takes(const Source& s, uint64_t key) const {
        return s.ready && s.held.front().key <= key + match_window_;
    }
    bool may_still_bring(const Source& s, uint64_t last) const {
        return !s.ready && !s.over() && s.absent == Cause{} && s.floor <= last;
    }
    bool is_missing(const Source& s, const SourceRule& rule, uint64_t key) const {
        return rule.required && !takes(s, key);
    }
    uint64_t oldest_key() const;  // UINT64_MAX: none
    void leave(const Open& open, bool discard, bool incomplete, bool staged = false);
    void count_too_large(size_t size);
    Fragment take_head(Source& s);
    size_t tail_size(const Open& open) const;
    uint8_t* put_tail(uint8_t* p, const Open& open) const;
    uint8_t* put_names(uint8_t* p, const char* name, const std::string& text) const;
    std::string missing_names(uint64_t key) const;
    std::string shift_names(uint64_t key) const;
    uint8_t* compose(uint8_t* out, const Open& open, size_t tail);
    uint32_t first_time_stamp(uint64_t key) const;
    uint64_t serial_of(const Open& open) const { return options_.by_time ? count_ : open.key; }
    void mark(uint32_t source, Cause cause, uint64_t last);

    // check.cpp
    enum class Verdict { fine, again, wait, stop };
    struct Agreed {
        uint64_t time = NO_TIME;
        uint32_t anchor = 0;
        std::vector<uint32_t> off;
    };
    Verdict check(uint64_t key);
    bool agree(uint64_t key, Agreed& said) const;
    bool look_for(Source& s, uint64_t serial, const Agreed& said, std::optional<int64_t>& shift);
    bool look_ahead(uint32_t anchor, uint64_t serial, uint64_t time, std::optional<int64_t>& shift);
    bool near(uint64_t a, uint64_t b) const { return (a > b ? a - b : b - a) <= options_.match_window; }
    void report(uint32_t source, uint64_t key, std::optional<int64_t> shift);

    BuilderOptions options_;
    uint64_t match_window_ = 0;  // 0 unless matched by time
    bool timed_ = false;         // times are read
    std::vector<Source> sources_;
    std::vector<Mark> marks_;
    std::vector<Report> reports_;
    std::vector<Track> tracks_;
    std::vector<uint8_t> late_, quarantined_;  // events for the side files
    std::vector<Staged> staged_;
    std::vector<Fragment> parts_;  // of the staged events, one for each source; event == nullptr: not there
    std::vector<uint8_t> tails_;
    std::deque<std::pair<uint64_t, uint64_t>> history_;  // (serial number, time) of past events
    uint64_t checked_time_ = NO_TIME;                    // of the event that was checked last
    uint32_t run_ = 0;
    bool epoch_known_ = false, discarding_ = false, full_ = false, has_given_ = false;
    int64_t blind_ = -1;  // source that the check waits for
    std::vector<Mark> looked_;  // what the check looked up in vain, not among the marks yet
    uint64_t epoch_ = 0, count_ = 0;
    size_t meta_room_ = 0, meta_wanted_ = 0;
    uint64_t next_serial_ = 0;
    uint64_t events_built_ = 0, events_incomplete_ = 0, events_too_large_ = 0, largest_refused_ = 0, not_kept_ = 0;
    size_t n_missed_ = 0;  // ranges in all sources
    size_t n_kept_ = 0;    // fragments held, and those that are known as recent, in all sources
};

// Size of an event's banks written as BANK32A, or -1 if it is not a valid event of `available` bytes.
int64_t banks_size_as_bank32a(const uint8_t* event, size_t available);
uint8_t* copy_banks_as_bank32a(uint8_t* out, const uint8_t* event, uint32_t banks_size);
// The first bank of that name: its type and bytes; null if there is none. The event must be a valid one.
const uint8_t* find_bank(const uint8_t* event, const char* name, uint32_t& tid, size_t& size);
// Writes header and padding of a bank in BANK32A around `size` bytes at p + 16; returns where the next one begins.
uint8_t* close_bank(uint8_t* p, const char* name, uint32_t tid, size_t size);
void append_bank(std::vector<uint8_t>& out, const char* name, uint32_t tid, const uint8_t* data, size_t size);
uint8_t* put_event_header(uint8_t* p, const EventHeader& header, size_t banks_size);

}  // namespace phloem
