// The reading side of a ring.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "ring.hpp"

namespace phloem {

void futex_wake(std::atomic<uint32_t>* word);

RingReader::RingReader(const std::string& path, const std::string& name, bool all, std::shared_ptr<Bell> bell)
    : path_(path), bell_(std::move(bell)), all_(all) {
    int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (fd < 0) throw RingError("there is no ring " + path + ": " + std::strerror(errno));
    try {
        map_ = std::make_shared<Mapping>(path, fd);
    } catch (const RingError&) {
        close(fd);
        throw;
    }
    close(fd);
    RingHeader* h = map_->header();
    std::string have;
    for (uint32_t i = 0; i < h->n_slots && !slot_; ++i) {
        Slot* slot = map_->slot(i);
        const auto kind = static_cast<SlotKind>(slot->kind.load());
        if (kind == SlotKind::all) have += have.empty() ? slot->name : std::string(", ") + slot->name;
        if (all && (kind != SlotKind::all || name != slot->name)) continue;
        if (!all && kind == SlotKind::all) continue;
        if (!all && Claim::holder(path, 1 + static_cast<int>(i)) != 0) continue;
        claim_ = std::make_unique<Claim>(path, 1 + static_cast<int>(i), "the place of reader '" + name + "'");
        slot_ = slot;
    }
    if (!slot_ && all)
        throw RingError("ring " + path + " has no place for reader '" + name + "'; its readers are: " + have);
    if (!slot_) throw RingError("ring " + path + " has no free place for another reader");
    slot_->pid = static_cast<uint32_t>(getpid());
    if (!all) {
        slot_->kind.store(static_cast<uint32_t>(SlotKind::some));
        std::memset(slot_->name, 0, sizeof slot_->name);
        std::memcpy(slot_->name, name.data(), std::min<size_t>(name.size(), 63));
        slot_->missed_events.store(0);
        jump_to_newest();
    } else {
        cursor_ = slot_->tail.load(std::memory_order_acquire);
    }
    const std::string bell_name = bell_ ? bell_->path().substr(bell_->path().find_last_of('/') + 1) : "";
    if (bell_name.size() > 63) throw RingError("the doorbell's name is longer than 63 bytes: " + bell_name);
    std::memset(slot_->bell, 0, sizeof slot_->bell);
    std::memcpy(slot_->bell, bell_name.data(), bell_name.size());
    slot_->bell_changes.fetch_add(1, std::memory_order_release);
}

RingReader::~RingReader() {
    if (slot_ && !all_) slot_->kind.store(static_cast<uint32_t>(SlotKind::free));
}

bool RingReader::has_data() const { return map_->header()->head.load(std::memory_order_seq_cst) != cursor_; }

uint64_t RingReader::newest_total(uint32_t run) const {
    const uint64_t last = map_->header()->last.load(std::memory_order_acquire);
    if (map_->header()->head.load(std::memory_order_acquire) == 0 || last % FRAME_ALIGN != 0) return 0;
    FrameHeader f;  // a copy: its writer may be about to write over it, which is then seen
    std::memcpy(static_cast<void*>(&f), map_->at(last), sizeof f);
    const bool same = map_->header()->last.load(std::memory_order_acquire) == last;
    return same && f.magic == FRAME_MAGIC && f.run == run ? f.total_events : 0;
}

uint64_t RingReader::backlog() const { return map_->header()->head.load(std::memory_order_acquire) - cursor_; }

static void check(const FrameHeader* f, uint64_t committed, const std::string& path, uint64_t position) {
    // body and meta are looked at one by one, so that no sum of damaged numbers can wrap
    if (f->magic != FRAME_MAGIC || f->size < sizeof *f || f->size > committed || f->size % FRAME_ALIGN != 0 ||
        f->body_size > f->size - sizeof *f || f->meta_size > f->size - sizeof *f - f->body_size)
        throw RingError("ring " + path + " is damaged at position " + std::to_string(position));
    if (f->version != FRAME_VERSION)
        throw RingError("ring " + path + " has frames of version " + std::to_string(f->version) + "; this is version " +
                        std::to_string(FRAME_VERSION));
}

const FrameHeader* RingReader::next() {
    if (!all_) throw RingError("reader of ring " + path_ + " may be overtaken: it gets copies, not views");
    const uint64_t head = map_->header()->head.load(std::memory_order_acquire);
    if (head == cursor_) return nullptr;
    if (head - cursor_ > map_->capacity() || head % FRAME_ALIGN != 0 || cursor_ % FRAME_ALIGN != 0)
        throw RingError("ring " + path_ + " is damaged: head " + std::to_string(head) + ", reader at " +
                        std::to_string(cursor_));
    const FrameHeader* f = map_->frame(cursor_);
    check(f, head - cursor_, path_, cursor_);
    cursor_ += f->size;
    return f;
}

void RingReader::release(uint64_t position) {
    if (!all_) return;
    RingHeader* h = map_->header();
    slot_->tail.store(position, std::memory_order_seq_cst);
    if (h->writer_waiting.load(std::memory_order_seq_cst) == 0) return;
    if (position < h->wanted_tail.load(std::memory_order_seq_cst)) return;
    if (h->writer_waiting.exchange(0, std::memory_order_seq_cst) == 0) return;
    h->space_bell.fetch_add(1, std::memory_order_seq_cst);
    futex_wake(&h->space_bell);
}

void RingReader::jump_to_newest() {
    RingHeader* h = map_->header();
    const uint64_t head = h->head.load(std::memory_order_acquire);
    cursor_ = head;
}

// Copies first and looks at `reserved` afterwards: only then is it known that the copy is whole.
bool RingReader::copy_next(std::vector<uint8_t>& out) {
    RingHeader* h = map_->header();
    const uint64_t capacity = map_->capacity();
    auto overtaken = [&] {
        std::atomic_thread_fence(std::memory_order_seq_cst);
        return h->reserved.load(std::memory_order_seq_cst) > cursor_ + capacity;
    };
    for (;;) {
        if (h->head.load(std::memory_order_acquire) == cursor_) return false;
        FrameHeader f;
        std::memcpy(static_cast<void*>(&f), map_->frame(cursor_), sizeof f);
        if (!overtaken()) {
            check(&f, capacity, path_, cursor_);
            out.resize(f.size);
            std::memcpy(out.data(), map_->at(cursor_), f.size);
            if (!overtaken()) {
                const uint64_t here = f.kind == static_cast<uint16_t>(FrameKind::events) ? f.n_events : 0;
                const uint64_t before = seen_ && f.run == seen_run_ ? seen_total_ : 0;
                if (seen_ && f.total_events > before + here)
                    slot_->missed_events.fetch_add(f.total_events - before - here);
                seen_ = true;
                seen_run_ = f.run;
                seen_total_ = f.total_events;
                cursor_ += f.size;
                return true;
            }
        }
        jump_to_newest();
    }
}

bool RingReader::replaced() const {
    struct stat info{};
    return stat(path_.c_str(), &info) != 0 || static_cast<uint64_t>(info.st_ino) != map_->inode();
}

bool RingReader::writer_alive() const {
    return Claim::holder(path_, 0) != 0;
}

}  // namespace phloem
