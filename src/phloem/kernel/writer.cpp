// The writing side of a ring.
#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <set>

#include "ring.hpp"

namespace phloem {

void futex_wait(std::atomic<uint32_t>* word, uint32_t expected, int64_t timeout_ns);
void futex_wake(std::atomic<uint32_t>* word);
BellWords* map_bell(const std::string& path, bool create, int* kept_fd);
void unmap_bell(BellWords* words);
void ring_bell(BellWords* words);

namespace {

// Closes frames that stay open: a readout may sit in its poll for long. One thread per process, asleep while
// no frame is open.
class FlushTimer {
  public:
    static FlushTimer& instance() {
        static FlushTimer* timer = new FlushTimer;  // lives as long as the process: writers may outlive statics
        return *timer;
    }
    void add(RingWriter* writer) {
        std::lock_guard guard(mutex_);
        writers_.insert(writer);
        if (!running_) {
            running_ = true;
            std::thread([this] { turn(); }).detach();
        }
    }
    void remove(RingWriter* writer) {
        std::lock_guard guard(mutex_);
        writers_.erase(writer);
    }
    // A frame that will be due earlier than the timer means to wake.
    void frame_opened(int64_t flush_ns) {
        const int64_t due = monotonic_ns() + flush_ns;
        if (due >= wakes_at_.load(std::memory_order_seq_cst)) return;
        std::lock_guard guard(sleep_mutex_);
        wakes_at_.store(due, std::memory_order_seq_cst);
        wake_.notify_one();
    }

  private:
    void turn() {
        for (;;) {
            wakes_at_.store(0, std::memory_order_seq_cst);  // awake: what is opened from now on is looked at below
            int64_t wait = LOOK_AGAIN_NS;
            {
                std::lock_guard guard(mutex_);
                for (RingWriter* writer : writers_) wait = std::min(wait, writer->flush_if_due(monotonic_ns()));
            }
            std::unique_lock lock(sleep_mutex_);
            int64_t until = monotonic_ns() + wait;
            wakes_at_.store(until, std::memory_order_seq_cst);
            for (int64_t left = wait; left > 0; left = until - monotonic_ns()) {
                wake_.wait_for(lock, std::chrono::nanoseconds(left));
                until = std::min(until, wakes_at_.load(std::memory_order_seq_cst));
            }
        }
    }
    std::mutex mutex_, sleep_mutex_;
    std::condition_variable wake_;
    std::atomic<int64_t> wakes_at_{0};
    std::set<RingWriter*> writers_;
    bool running_ = false;
};

void boot_id(uint8_t out[16]) {
    std::memset(out, 0, 16);
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    char text[37] = {};
    ssize_t got = read(fd, text, 36);
    close(fd);
    int digit = 0;
    for (ssize_t i = 0; i < got && digit < 32; ++i) {
        if (text[i] == '-') continue;
        int value = text[i] <= '9' ? text[i] - '0' : (text[i] | 32) - 'a' + 10;
        out[digit / 2] = static_cast<uint8_t>(out[digit / 2] << 4 | value);
        ++digit;
    }
}

void copy_name(char (&out)[64], const std::string& name, const char* what) {
    if (name.size() > 63) throw RingError(std::string(what) + " '" + name + "' is longer than 63 bytes");
    std::memset(out, 0, 64);
    std::memcpy(out, name.data(), name.size());
}

}  // namespace

RingWriter::RingWriter(const Options& options) : options_(options) {
    if (options_.capacity == 0 || options_.capacity % CAPACITY_STEP != 0)
        throw RingError("ring " + options_.path + ": capacity " + std::to_string(options_.capacity) +
                        " is not a multiple of " + std::to_string(CAPACITY_STEP) + " bytes");
    if (options_.capacity < 4 * BORDER_RESERVE)
        throw RingError("ring " + options_.path + ": capacity " + std::to_string(options_.capacity) +
                        " is less than 262144 bytes");
    options_.max_frame = std::min(options_.max_frame, options_.capacity / 8);
    claim_ = std::make_unique<Claim>(options_.path, 0, "the writer's place");
    if (!adopt()) make_new();
    map_->header()->writer_pid = static_cast<uint32_t>(getpid());
    map_->header()->writer_waiting.store(0, std::memory_order_seq_cst);
    bells_.resize(map_->header()->n_slots);
    FlushTimer::instance().add(this);
}

RingWriter::~RingWriter() {
    FlushTimer::instance().remove(this);
    flush();
    for (KnownBell& bell : bells_) unmap_bell(bell.words);
}

// A ring that is there already is continued: its frames are kept, its counts go on.
bool RingWriter::adopt() {
    int fd = open(options_.path.c_str(), O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        if (errno == ENOENT) return false;
        throw RingError("cannot open ring " + options_.path + ": " + std::strerror(errno));
    }
    try {
        map_ = std::make_unique<Mapping>(options_.path, fd);
    } catch (const RingError&) {
        close(fd);
        throw;
    }
    close(fd);
    RingHeader* h = map_->header();
    uint8_t boot[16];
    boot_id(boot);
    if (std::memcmp(boot, h->boot_id, 16) != 0) {
        map_.reset();
        const std::string aside = options_.path + ".before-boot";
        if (rename(options_.path.c_str(), aside.c_str()) != 0)
            throw RingError("ring " + options_.path + " is of an earlier boot and cannot be moved aside: " +
                            std::strerror(errno));
        return false;
    }
    head_ = h->head.load(std::memory_order_acquire);
    last_ = h->last.load(std::memory_order_acquire);
    const auto damaged = [&](uint64_t at) {
        return RingError("ring " + options_.path + " is damaged at position " + std::to_string(at) +
                         "; its run cannot be continued");
    };
    if (last_ > head_ || head_ - last_ > map_->capacity() || head_ % FRAME_ALIGN != 0 || last_ % FRAME_ALIGN != 0)
        throw damaged(last_);
    while (last_ < head_) {  // killed between `head` and `last`: walk on to the newest frame
        const FrameHeader* f = map_->frame(last_);
        if (f->magic != FRAME_MAGIC || f->size < sizeof *f || f->size % FRAME_ALIGN != 0 || f->size > head_ - last_)
            throw damaged(last_);
        if (last_ + f->size == head_) break;
        last_ += f->size;
    }
    if (head_ > 0) {
        const FrameHeader* f = map_->frame(last_);
        sequence_ = f->sequence + 1;
        run_ = f->run;
        total_events_ = f->total_events;
        total_bytes_ = f->total_bytes;
        next_serial_ = f->next_serial;
    }
    close_dead_frame();
    continued_ = true;
    std::vector<std::string> have;
    for (uint32_t i = 0; i < h->n_slots; ++i)
        if (map_->slot(i)->kind.load() == static_cast<uint32_t>(SlotKind::all)) have.emplace_back(map_->slot(i)->name);
    bool same = have == options_.readers && h->capacity == options_.capacity && options_.source == h->source &&
                options_.buffer == h->buffer;
    if (same) return true;
    if (!drained())
        throw RingError("ring " + options_.path + " holds " + std::to_string(used()) +
                        " bytes that a reader has not read; it cannot be remade with other settings");
    map_.reset();
    continued_ = false;
    return false;
}

void RingWriter::make_new() {
    head_ = last_ = sequence_ = total_events_ = total_bytes_ = 0;
    run_ = next_serial_ = 0;
    const uint32_t n_slots = static_cast<uint32_t>(options_.readers.size()) + options_.free_slots;
    const size_t header_size = align_up(SLOTS_OFFSET + n_slots * sizeof(Slot), 4096);
    const std::string making = options_.path + ".making";
    int fd = open(making.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) throw RingError("cannot make ring " + options_.path + ": " + std::strerror(errno));
    int failed = posix_fallocate(fd, 0, static_cast<off_t>(header_size + options_.capacity));
    if (failed) {
        close(fd);
        unlink(making.c_str());
        throw RingError("no room for ring " + options_.path + " of " +
                        std::to_string(header_size + options_.capacity) + " bytes: " + std::strerror(failed) +
                        "; make the shared-memory directory larger or the buffer smaller");
    }
    std::vector<uint8_t> page(header_size, 0);
    auto* h = reinterpret_cast<RingHeader*>(page.data());
    std::memcpy(h->magic, "PHLRING1", 8);
    h->version = 1;
    h->header_size = static_cast<uint32_t>(header_size);
    h->capacity = options_.capacity;
    if (getrandom(&h->generation, sizeof h->generation, 0) != sizeof h->generation) h->generation = realtime_ns();
    boot_id(h->boot_id);
    h->n_slots = n_slots;
    h->max_frame = options_.max_frame;
    copy_name(h->source, options_.source, "source");
    copy_name(h->buffer, options_.buffer, "buffer");
    auto* slots = reinterpret_cast<Slot*>(page.data() + SLOTS_OFFSET);
    for (size_t i = 0; i < options_.readers.size(); ++i) {
        copy_name(slots[i].name, options_.readers[i], "reader");
        slots[i].kind.store(static_cast<uint32_t>(SlotKind::all));
    }
    bool ok = pwrite(fd, page.data(), page.size(), 0) == static_cast<ssize_t>(page.size());
    if (ok) {
        try {
            map_ = std::make_unique<Mapping>(options_.path, fd);
        } catch (const RingError&) {
            close(fd);
            unlink(making.c_str());
            throw;
        }
        std::memset(map_->at(0), 0, options_.capacity);  // touched now, not in the run: first touch is slow
        ok = rename(making.c_str(), options_.path.c_str()) == 0;
    }
    close(fd);
    if (!ok) throw RingError("cannot make ring " + options_.path + ": " + std::strerror(errno));
}

// A dead writer's open frame is closed by whoever gets its lock; without a dead writer nothing happens.
bool RingWriter::settle(const std::string& path) {
    Options options;
    options.path = path;
    int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (fd < 0) return false;
    try {
        Mapping look(path, fd);
        close(fd);
        const RingHeader* h = look.header();
        options.source = h->source;
        options.buffer = h->buffer;
        options.capacity = h->capacity;
        options.free_slots = 0;
        for (uint32_t i = 0; i < h->n_slots; ++i)
            if (look.slot(i)->kind.load() == static_cast<uint32_t>(SlotKind::all))
                options.readers.emplace_back(look.slot(i)->name);
        if (Claim::holder(path, 0) != 0) return false;
    } catch (const RingError&) {
        close(fd);
        throw;
    }
    try {
        RingWriter writer(options);
        return true;
    } catch (const RingError&) {  // its owner came back in this moment
        return false;
    }
}

// What a killed writer had published is sent: its frame is closed there.
void RingWriter::close_dead_frame() {
    RingHeader* h = map_->header();
    const uint64_t published = h->published.load(std::memory_order_acquire);
    const uint32_t events = static_cast<uint32_t>(published >> PUBLISHED_BYTES_BITS);
    const size_t bytes = published & PUBLISHED_BYTES_MASK;
    if (events == 0) {
        h->published.store(0, std::memory_order_release);
        return;
    }
    FrameHeader* f = map_->frame(head_);
    const uint8_t* p = reinterpret_cast<const uint8_t*>(f + 1);
    if (f->magic != FRAME_MAGIC || f->sequence != sequence_ || sizeof(FrameHeader) + bytes > map_->capacity() / 2) {
        h->published.store(0, std::memory_order_release);  // killed between commit and clearing the word
        return;
    }
    uint32_t serial = next_serial_;
    for (size_t at = 0; at + sizeof(EventHeader) <= bytes;) {
        serial = load_u32(p + at + 4) + 1;
        at += align_up(sizeof(EventHeader) + load_u32(p + at + 12), 8);
    }
    open_ = f;
    open_events_ = events;
    open_bytes_ = bytes;
    next_serial_ = serial;
    run_ = f->run;
    if (f->sequence == 0 || map_->frame(last_)->run != f->run) total_events_ = total_bytes_ = 0;
    total_events_ += events;
    total_bytes_ += bytes;
    bells_.resize(h->n_slots);
    close_frame(nullptr, 0);
}

uint64_t RingWriter::oldest_needed() const {
    uint64_t oldest = last_;  // the newest frame counts as unread, so that it can be read after a crash
    const RingHeader* h = map_->header();
    for (uint32_t i = 0; i < h->n_slots; ++i) {
        const Slot* slot = map_->slot(i);
        if (slot->kind.load(std::memory_order_acquire) == static_cast<uint32_t>(SlotKind::all))
            oldest = std::min(oldest, slot->tail.load(std::memory_order_seq_cst));
    }
    return oldest;
}

uint64_t RingWriter::used() const {
    const RingHeader* h = map_->header();
    const uint64_t head = h->head.load(std::memory_order_acquire);
    uint64_t oldest = head;
    for (uint32_t i = 0; i < h->n_slots; ++i) {
        const Slot* slot = map_->slot(i);
        if (slot->kind.load(std::memory_order_acquire) == static_cast<uint32_t>(SlotKind::all))
            oldest = std::min(oldest, slot->tail.load(std::memory_order_acquire));
    }
    return head - oldest;
}

bool RingWriter::drained() const { return used() == 0; }

bool RingWriter::fits(uint64_t need, bool border) const {
    const uint64_t keep = border ? 0 : BORDER_RESERVE;
    return head_ - oldest_needed() + need + keep <= map_->capacity();
}

size_t RingWriter::largest_body(size_t meta_room) const {
    const size_t most = map_->capacity() / 2 - BORDER_RESERVE, other = sizeof(FrameHeader) + meta_room + FRAME_ALIGN;
    return most > other ? most - other : 0;
}

bool RingWriter::open_frame(FrameKind kind, size_t body_at_least, size_t meta_room) {
    const bool border = kind != FrameKind::events;
    const size_t usual = std::min<size_t>(options_.max_frame, largest_body(meta_room));
    const size_t room = border ? body_at_least : std::max(body_at_least, usual);
    const uint64_t need = align_up(sizeof(FrameHeader) + room + meta_room, FRAME_ALIGN);
    if (need > map_->capacity() / 2 - BORDER_RESERVE)
        throw RingError("an event of " + std::to_string(body_at_least) + " bytes is too large for buffer " +
                        options_.buffer + " of " + std::to_string(map_->capacity()) +
                        " bytes (an event may have a little less than half of it); raise /Experiment/Buffer sizes/" +
                        options_.buffer);
    need_ = need;
    if (!fits(need, border)) return false;
    RingHeader* h = map_->header();
    // Before a byte is written: a `some` reader that has copied looks at `reserved` to know whether it was overtaken.
    if (head_ + need > h->reserved.load(std::memory_order_relaxed)) {
        h->reserved.store(head_ + need, std::memory_order_seq_cst);
        std::atomic_thread_fence(std::memory_order_seq_cst);
    }
    FrameHeader* f = map_->frame(head_);
    std::memset(static_cast<void*>(f), 0, sizeof *f);
    f->magic = FRAME_MAGIC;
    f->version = FRAME_VERSION;
    f->kind = static_cast<uint16_t>(kind);
    f->run = run_;
    f->sequence = sequence_;
    f->generation = h->generation;
    f->first_serial = next_serial_;
    open_ = f;
    open_bytes_ = 0;
    open_events_ = 0;
    open_room_ = room;
    open_meta_room_ = meta_room;
    return true;
}

void RingWriter::close_frame(const uint8_t* meta, size_t meta_size) {
    FrameHeader* f = open_;
    uint8_t* body = reinterpret_cast<uint8_t*>(f + 1);
    f->body_size = open_bytes_;
    f->meta_size = meta_size;
    if (meta_size) std::memcpy(body + open_bytes_, meta, meta_size);
    f->n_events = open_events_;
    f->next_serial = next_serial_;
    f->total_events = total_events_;
    f->total_bytes = total_bytes_;
    f->time_ns = static_cast<uint64_t>(realtime_ns());
    f->size = align_up(sizeof(FrameHeader) + open_bytes_ + meta_size, FRAME_ALIGN);
    open_ = nullptr;
    commit(f);
}

void RingWriter::commit(FrameHeader* f) {
    RingHeader* h = map_->header();
    const uint64_t begins = head_;
    head_ += f->size;
    ++sequence_;
    h->head.store(head_, std::memory_order_seq_cst);
    h->published.store(0, std::memory_order_release);
    h->last.store(begins, std::memory_order_release);
    last_ = begins;
    ring_bells();
}

void RingWriter::ring_bells() {
    for (size_t i = 0; i < bells_.size(); ++i) {
        Slot* slot = map_->slot(i);
        const uint32_t changes = slot->bell_changes.load(std::memory_order_acquire);
        if (changes != bells_[i].changes) {
            unmap_bell(bells_[i].words);
            const std::string beside = options_.path.substr(0, options_.path.find_last_of('/') + 1) + slot->bell;
            bells_[i] = {changes, slot->bell[0] ? map_bell(beside, false, nullptr) : nullptr};
        }
        if (bells_[i].words) ring_bell(bells_[i].words);
    }
}

void RingWriter::begin_run(uint32_t run) {
    flush();
    std::lock_guard guard(mutex_);
    run_ = run;
    total_events_ = total_bytes_ = 0;
    next_serial_ = 0;
}

// Room for one event in the open frame, which is closed and followed by a new one where it must.
uint8_t* RingWriter::claim(size_t bytes) {
    if (open_ && open_bytes_ + bytes > open_room_) close_frame(nullptr, 0);
    if (!open_) {
        if (!open_frame(FrameKind::events, bytes, 0)) return nullptr;
        opened_ns_ = monotonic_ns();
    }
    return reinterpret_cast<uint8_t*>(open_ + 1) + open_bytes_;
}

void RingWriter::sent(size_t bytes, uint32_t serial) {
    if (open_events_++ == 0) open_->first_serial = serial;
    open_bytes_ += bytes;
    next_serial_ = serial + 1;
    ++total_events_;
    total_bytes_ += bytes;
}

// This store is the moment of "sent".
void RingWriter::publish() {
    map_->header()->published.store(uint64_t{open_events_} << PUBLISHED_BYTES_BITS | open_bytes_,
                                    std::memory_order_release);
}

static uint8_t* put_bank(uint8_t* p, const BankSpan& bank, const uint8_t* data) {
    std::memcpy(p, bank.name, 4);
    store_u32(p + 4, bank.tid);
    store_u32(p + 8, static_cast<uint32_t>(bank.size));
    store_u32(p + 12, 0);
    std::memcpy(p + 16, data, bank.size);
    const size_t padded = align_up(bank.size, 8);
    std::memset(p + 16 + bank.size, 0, padded - bank.size);
    return p + 16 + padded;
}

static size_t banks_size(const std::vector<BankSpan>& banks) {
    size_t size = 0;
    for (const BankSpan& bank : banks) size += 16 + align_up(bank.size, 8);
    return size;
}

static uint8_t* put_event_header(uint8_t* p, EventHeader header, size_t bank_bytes) {
    header.data_size = static_cast<uint32_t>(8 + bank_bytes);
    std::memcpy(p, &header, sizeof header);
    store_u32(p + 16, static_cast<uint32_t>(bank_bytes));
    store_u32(p + 20, 0x31);
    return p + 24;
}

bool RingWriter::send_event(const EventHeader& header, const std::vector<BankSpan>& banks) {
    const size_t bank_bytes = banks_size(banks), size = 24 + bank_bytes;
    bool opened;
    {
        std::lock_guard guard(mutex_);
        const FrameHeader* before = open_;
        uint8_t* p = claim(size);
        if (!p) return false;
        opened = open_ != before;
        p = put_event_header(p, header, bank_bytes);
        for (const BankSpan& bank : banks) p = put_bank(p, bank, bank.data);
        sent(size, header.serial_number);
        publish();
    }
    if (opened) FlushTimer::instance().frame_opened(options_.flush_ns);
    return true;
}

size_t RingWriter::send_batch(const EventHeader& header, const std::vector<BankSpan>& banks, const uint32_t* serials,
                              size_t start, size_t n) {
    const size_t bank_bytes = banks_size(banks), size = 24 + bank_bytes;
    size_t i = start;
    {
        std::lock_guard guard(mutex_);
        for (; i < n; ++i) {
            if (open_ && open_bytes_ + size > open_room_) publish();
            uint8_t* p = claim(size);
            if (!p) break;
            EventHeader one = header;
            one.serial_number = serials ? serials[i] : header.serial_number + static_cast<uint32_t>(i);
            p = put_event_header(p, one, bank_bytes);
            for (const BankSpan& bank : banks) p = put_bank(p, bank, bank.data + i * bank.size);
            sent(size, one.serial_number);
        }
        if (open_) publish();
    }
    if (i > start) FlushTimer::instance().frame_opened(options_.flush_ns);
    return i;
}

size_t RingWriter::send_raw(const uint8_t* data, size_t size, size_t start) {
    size_t at = start;
    {
        std::lock_guard guard(mutex_);
        while (at < size) {
            if (size - at < sizeof(EventHeader)) throw RingError("raw events end within an event header");
            const size_t bytes = sizeof(EventHeader) + load_u32(data + at + 12), padded = align_up(bytes, 8);
            if (bytes > size - at) throw RingError("raw events end within an event");
            uint8_t* p = claim(padded);
            if (!p) break;
            std::memcpy(p, data + at, bytes);
            if (padded != bytes) {
                std::memset(p + bytes, 0, padded - bytes);
                open_->flags |= FRAME_UNALIGNED;
            }
            sent(padded, load_u32(data + at + 4));
            publish();
            at += bytes;
        }
    }
    if (at > start) FlushTimer::instance().frame_opened(options_.flush_ns);
    return at;
}

bool RingWriter::send_frame(FrameKind kind, const uint8_t* body, size_t body_size, uint32_t n_events,
                            const uint8_t* meta, size_t meta_size) {
    std::lock_guard guard(mutex_);
    if (open_ && open_events_ && open_meta_room_) throw RingError("close the open frame with its checkpoint first");
    if (open_ && open_events_) close_frame(nullptr, 0);
    open_ = nullptr;
    if (!open_frame(kind, body_size, meta_size)) return false;
    if (body_size) std::memcpy(reinterpret_cast<uint8_t*>(open_ + 1), body, body_size);
    open_bytes_ = body_size;
    open_events_ = n_events;
    close_frame(meta, meta_size);
    return true;
}

void RingWriter::flush() {
    std::lock_guard guard(mutex_);
    if (open_ && open_events_ && !open_meta_room_) close_frame(nullptr, 0);
}

int64_t RingWriter::flush_if_due(int64_t now_ns) {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return options_.flush_ns;  // it is sending: look again when that frame may be due
    if (!open_ || !open_events_ || open_meta_room_) return INT64_MAX;
    const int64_t due = opened_ns_ + options_.flush_ns - now_ns;
    if (due > 0) return due;
    close_frame(nullptr, 0);
    return INT64_MAX;
}

bool RingWriter::wait_space(int64_t timeout_ns) {
    RingHeader* h = map_->header();
    const int64_t began = monotonic_ns();
    // Not woken for every frame that is freed, but for a quarter of the ring: fewer switches between processes.
    const uint64_t want = std::min(std::max(need_, map_->capacity() / 4), map_->capacity() / 2) + BORDER_RESERVE;
    uint32_t token = h->space_bell.load(std::memory_order_seq_cst);
    h->wanted_tail.store(head_ + want > map_->capacity() ? head_ + want - map_->capacity() : 0,
                         std::memory_order_seq_cst);
    h->writer_waiting.store(1, std::memory_order_seq_cst);
    if (!fits(need_, false)) futex_wait(&h->space_bell, token, std::min(timeout_ns, LOOK_AGAIN_NS));
    h->writer_waiting.store(0, std::memory_order_seq_cst);
    h->blocked_ns.fetch_add(static_cast<uint64_t>(monotonic_ns() - began), std::memory_order_relaxed);
    return fits(need_, false);
}

}  // namespace phloem
