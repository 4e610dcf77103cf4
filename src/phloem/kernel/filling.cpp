// Frames that are filled in place: the builder writes events into the open frame, then closes it with a checkpoint.
#include <algorithm>

#include "ring.hpp"

namespace phloem {

uint8_t* RingWriter::open_body(size_t at_least, size_t wanted_meta, size_t& room, size_t& meta_room) {
    std::lock_guard guard(mutex_);
    const bool too_small = open_ && open_bytes_ + std::max<size_t>(at_least, 1) > open_room_;
    if (too_small && open_events_) throw RingError("close the open frame before asking for more");
    if (too_small || (open_ && !open_events_)) open_ = nullptr;  // nothing in it yet: begin it anew
    if (!open_ && !open_frame(FrameKind::events, at_least, wanted_meta)) return nullptr;
    meta_room = open_meta_room_;
    room = open_room_ - open_bytes_;
    return reinterpret_cast<uint8_t*>(open_ + 1) + open_bytes_;
}

void RingWriter::fill(size_t bytes, uint32_t n_events, uint32_t first_serial, uint32_t next_serial) {
    if (n_events == 0) return;
    if (open_events_ == 0) open_->first_serial = first_serial;
    open_events_ += n_events;
    open_bytes_ += bytes;
    next_serial_ = next_serial;
    total_events_ += n_events;
    total_bytes_ += bytes;
}

void RingWriter::close_with(const uint8_t* meta, size_t meta_size) {
    std::lock_guard guard(mutex_);
    if (!open_) throw RingError("no frame is open");
    if (meta_size > open_meta_room_) throw RingError("the checkpoint is larger than the room kept for it");
    close_frame(meta, meta_size);
}

}  // namespace phloem
