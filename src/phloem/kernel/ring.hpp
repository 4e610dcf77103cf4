// Shared-memory ring: one writer, several readers, in a file that is mapped. Rules: docs/protocol.md, "The ring".
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "frame.hpp"

namespace phloem {

// A ring or lock cannot do what was asked; the text is for people.
struct RingError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

constexpr size_t CAPACITY_STEP = 64 * 1024;
constexpr size_t BORDER_RESERVE = 64 * 1024;  // kept for border frames, so that a full ring can still be ended
constexpr int64_t LOOK_AGAIN_NS = 100'000'000;  // every wait ends by then: a writer may die between commit and wake

enum class SlotKind : uint32_t { free = 0, all = 1, some = 2 };

struct alignas(64) Slot {
    std::atomic<uint64_t> tail;  // up to here the reader has released
    uint8_t pad0[56];
    std::atomic<uint32_t> kind;
    std::atomic<uint32_t> bell_changes;  // grows each time `bell` names another file
    std::atomic<uint64_t> missed_events;
    uint32_t pid;  // for messages to people only
    uint8_t pad1[44];
    char name[64];
    char bell[64];  // file name of the reader's doorbell, beside the ring
};
static_assert(sizeof(Slot) == 256);

struct RingHeader {
    char magic[8];
    uint32_t version;
    uint32_t header_size;
    uint64_t capacity;
    uint64_t generation;
    uint8_t boot_id[16];
    uint32_t n_slots;
    uint32_t writer_pid;
    uint64_t max_frame;
    char source[64];
    char buffer[64];
    uint8_t pad0[64];
    alignas(64) std::atomic<uint64_t> head;       // 256: all frames before it are committed
    alignas(64) std::atomic<uint64_t> reserved;   // 320: the writer may be writing up to here
    alignas(64) std::atomic<uint64_t> published;  // 384: events and bytes of the open frame, in one word
    alignas(64) std::atomic<uint64_t> last;       // 448: where the last committed frame begins
    alignas(64) std::atomic<uint32_t> writer_waiting;  // 512
    std::atomic<uint32_t> space_bell;                  // futex
    std::atomic<uint64_t> wanted_tail;                 // the writer can go on when all tails are here
    alignas(64) std::atomic<uint64_t> blocked_ns;      // 576: how long the writer has waited for space
};
static_assert(sizeof(RingHeader) == 640);
constexpr size_t SLOTS_OFFSET = 1024;

constexpr int PUBLISHED_BYTES_BITS = 36;
constexpr uint64_t PUBLISHED_BYTES_MASK = (uint64_t{1} << PUBLISHED_BYTES_BITS) - 1;

struct BellWords {
    std::atomic<uint32_t> count;
    std::atomic<uint32_t> waiting;
};

// A process's doorbell: one futex word on which it waits for all its rings at once.
class Bell {
  public:
    explicit Bell(const std::string& path);
    ~Bell();
    Bell(const Bell&) = delete;
    Bell& operator=(const Bell&) = delete;
    const std::string& path() const { return path_; }
    // The two halves of a wait: arm(), look at every ring, then sleep(token) if there was nothing.
    uint32_t arm();
    void disarm();
    void sleep(uint32_t token, int64_t timeout_ns);
    void ring();  // from anywhere, also from another thread of this process

  private:
    std::string path_;
    int fd_ = -1;
    BellWords* words_ = nullptr;
};

// The mapping of a ring file: header once, body twice in a row.
class Mapping {
  public:
    Mapping(const std::string& path, int fd);
    ~Mapping();
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    RingHeader* header() const { return header_; }
    Slot* slot(size_t i) const { return reinterpret_cast<Slot*>(base_ + SLOTS_OFFSET) + i; }
    uint8_t* at(uint64_t position) const { return body_ + position % capacity_; }
    uint64_t capacity() const { return capacity_; }
    uint64_t inode() const { return inode_; }
    FrameHeader* frame(uint64_t position) const { return reinterpret_cast<FrameHeader*>(at(position)); }

  private:
    uint8_t* base_ = nullptr;
    uint8_t* body_ = nullptr;
    size_t mapped_ = 0;
    uint64_t capacity_ = 0;
    uint64_t inode_ = 0;
    RingHeader* header_ = nullptr;
};

// A record lock on one byte of the ring's lock file: byte 0 is the writer's, byte 1 + i slot i's.
class Claim {
  public:
    Claim(const std::string& ring_path, int byte, const std::string& what);
    ~Claim();
    Claim(const Claim&) = delete;
    Claim& operator=(const Claim&) = delete;
    static int holder(const std::string& ring_path, int byte);  // pid, or 0

  private:
    std::string key_;
    int byte_;
};

struct BankSpan {
    char name[4];
    uint32_t tid;
    const uint8_t* data;
    size_t size;  // bytes in one event
};

class RingWriter {
  public:
    struct Options {
        std::string path, source, buffer;
        uint64_t capacity = 8 << 20;
        uint64_t max_frame = 256 << 10;
        int64_t flush_ns = 2'000'000;
        std::vector<std::string> readers;
        uint32_t free_slots = 4;
    };
    explicit RingWriter(const Options& options);
    ~RingWriter();
    RingWriter(const RingWriter&) = delete;
    RingWriter& operator=(const RingWriter&) = delete;

    static bool settle(const std::string& path);
    void begin_run(uint32_t run);
    // One event of the given banks, as BANK32A. False: no space now.
    bool send_event(const EventHeader& header, const std::vector<BankSpan>& banks);
    // Events of equal shape; `serials` has one number per event, or is null and they count up from header's.
    // Sends from index `start` and returns the index it came to (less than `n`: no space now).
    size_t send_batch(const EventHeader& header, const std::vector<BankSpan>& banks, const uint32_t* serials,
                      size_t start, size_t n);
    // Whole events, back to back without padding. Returns the offset it came to.
    size_t send_raw(const uint8_t* data, size_t size, size_t start);
    // A frame of its own. False: no space now.
    bool send_frame(FrameKind kind, const uint8_t* body, size_t body_size, uint32_t n_events, const uint8_t* meta,
                    size_t meta_size);
    void flush();
    // Closes the open frame if it is due; otherwise ns until it will be, INT64_MAX if there is none.
    int64_t flush_if_due(int64_t now_ns);
    bool wait_space(int64_t timeout_ns);

    // In-place filling for the builder: the body of the open frame from its end on.
    // `room` and `meta_room` (in: wanted) then say how much there is for events and behind them.
    uint8_t* open_body(size_t at_least, size_t wanted_meta, size_t& room, size_t& meta_room);
    size_t largest_body(size_t meta_room) const;  // of any frame
    void fill(size_t bytes, uint32_t n_events, uint32_t first_serial, uint32_t next_serial);
    void close_with(const uint8_t* meta, size_t meta_size);
    const uint8_t* first_open_event() const {
        return open_ && open_events_ ? reinterpret_cast<const uint8_t*>(open_ + 1) : nullptr;
    }
    bool has_open() const { return open_ != nullptr; }
    uint32_t open_events() const { return open_events_; }

    uint64_t capacity() const { return map_->capacity(); }
    uint64_t generation() const { return map_->header()->generation; }
    uint64_t used() const;
    uint64_t total_events() const { return total_events_; }
    uint64_t total_bytes() const { return total_bytes_; }
    uint32_t next_serial() const { return next_serial_; }
    uint32_t run() const { return run_; }
    uint64_t sequence() const { return sequence_; }
    uint64_t blocked_ns() const { return map_->header()->blocked_ns.load(std::memory_order_relaxed); }
    const Options& options() const { return options_; }
    bool continued() const { return continued_; }
    bool drained() const;

  private:
    bool open_frame(FrameKind kind, size_t body_at_least, size_t meta_room);
    void close_frame(const uint8_t* meta, size_t meta_size);
    void commit(FrameHeader* frame);
    void publish();
    uint8_t* claim(size_t bytes);
    void sent(size_t bytes, uint32_t serial);
    uint64_t oldest_needed() const;
    bool fits(uint64_t need, bool border) const;
    void ring_bells();
    bool adopt();
    void make_new();
    void close_dead_frame();

    Options options_;
    std::unique_ptr<Claim> claim_;
    std::unique_ptr<Mapping> map_;
    mutable std::mutex mutex_;
    uint64_t head_ = 0, last_ = 0, sequence_ = 0, total_events_ = 0, total_bytes_ = 0, need_ = 0;
    uint32_t run_ = 0, next_serial_ = 0;
    bool continued_ = false;
    // the open frame
    FrameHeader* open_ = nullptr;
    size_t open_bytes_ = 0, open_room_ = 0, open_meta_room_ = 0;
    uint32_t open_events_ = 0;
    int64_t opened_ns_ = 0;
    struct KnownBell {
        uint32_t changes = 0;
        BellWords* words = nullptr;
    };
    std::vector<KnownBell> bells_;
};

class RingReader {
  public:
    RingReader(const std::string& path, const std::string& name, bool all, std::shared_ptr<Bell> bell);
    ~RingReader();
    RingReader(const RingReader&) = delete;
    RingReader& operator=(const RingReader&) = delete;

    const FrameHeader* next();             // the next frame, or null; the cursor moves on
    uint64_t cursor() const { return cursor_; }
    const std::shared_ptr<Mapping>& mapping() const { return map_; }
    void release(uint64_t position);       // all frames before it may be overwritten
    bool copy_next(std::vector<uint8_t>& out);  // for `some` readers: a private copy of the next whole frame
    bool has_data() const;
    bool replaced() const;                 // another ring lies under the path now
    bool writer_waiting() const { return map_->header()->writer_waiting.load(std::memory_order_seq_cst) != 0; }
    uint32_t writer_pid() const { return map_->header()->writer_pid; }
    bool writer_alive() const;
    uint64_t backlog() const;
    uint64_t capacity() const { return map_->capacity(); }
    uint64_t generation() const { return map_->header()->generation; }
    uint64_t newest_total(uint32_t run) const;  // events sent in `run` up to the newest frame; 0 if that is of another
    uint64_t missed_events() const { return slot_->missed_events.load(std::memory_order_relaxed); }
    const std::string& path() const { return path_; }

  private:
    void jump_to_newest();
    std::string path_;
    std::shared_ptr<Mapping> map_;  // frames keep it too
    std::unique_ptr<Claim> claim_;
    std::shared_ptr<Bell> bell_;
    Slot* slot_ = nullptr;
    bool all_;
    uint64_t cursor_ = 0;
    uint64_t seen_total_ = 0;
    uint32_t seen_run_ = 0;
    bool seen_ = false;
};

int64_t monotonic_ns();
int64_t realtime_ns();

}  // namespace phloem
