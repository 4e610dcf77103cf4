// Events that user code sees before they leave: matched and decided on like all others, but not copied yet.
#include <stdexcept>

#include "builder.hpp"

namespace phloem {

Builder::Stop Builder::stage(size_t max_bytes, size_t max_events, size_t meta_room) {
    Built result;
    Open open;
    meta_room_ = meta_room;
    blind_ = -1;
    size_t bytes = 0;
    while (staged_.size() < max_events) {
        if (!find_next(open, result)) return result.why;
        const size_t tail = tail_size(open), size = 24 + open.banks + tail;
        const bool too_large = size > options_.max_event;
        if (too_large) count_too_large(size);
        if (too_large || open.policy == Policy::discard || discarding_) {
            leave(open, true, !open.complete);
            continue;
        }
        if (bytes > 0 && bytes + size > max_bytes) break;
        bytes += size;
        Staged event{serial_of(open), first_time_stamp(open.key), !open.complete, static_cast<uint32_t>(tail),
                     tails_.size(), open.banks, Staged::Outcome::build, {}};
        tails_.resize(tails_.size() + tail);
        if (tail) put_tail(tails_.data() + event.tail, open);
        for (Source& s : sources_) parts_.push_back(takes(s, open.key) ? s.held.front() : Fragment{});
        staged_.push_back(std::move(event));
        leave(open, false, !open.complete, true);
    }
    return Stop::room;
}

const Fragment* Builder::staged_fragment(size_t i, uint32_t source) const {
    if (i >= staged_.size() || source >= sources_.size()) throw std::out_of_range("no such staged fragment");
    const Fragment& f = parts_[i * sources_.size() + source];
    return f.event ? &f : nullptr;
}

size_t Builder::staged_size(size_t i) const {
    const Staged& event = staged_.at(i);
    const bool composed = event.outcome == Staged::Outcome::compose;
    return 24 + event.extra.size() + (composed ? 0 : event.banks_size) + event.tail_size;
}

bool Builder::leaves(size_t i) const {
    return staged_.at(i).outcome != Staged::Outcome::skip && staged_size(i) <= options_.max_event;
}

Builder::Built Builder::write_staged(uint8_t* out, size_t n) {
    Built result;
    uint8_t* p = out;
    const size_t width = sources_.size();
    for (size_t i = 0; i < n; ++i) {
        const Staged& event = staged_.at(i);
        const bool discard = !leaves(i);
        if (!discard) {
            const size_t size = staged_size(i);
            const auto serial = static_cast<uint32_t>(event.serial);
            p = put_event_header(p, {options_.event_id, options_.trigger_mask, serial, event.time_stamp, 0}, size - 24);
            if (!event.extra.empty()) std::memcpy(p, event.extra.data(), event.extra.size());
            p += event.extra.size();
            for (size_t s = 0; s < width && event.outcome == Staged::Outcome::build; ++s)
                if (const Fragment& f = parts_[i * width + s]; f.event) p = copy_banks_as_bank32a(p, f.event, f.banks_size);
            if (event.tail_size) std::memcpy(p, tails_.data() + event.tail, event.tail_size);
            p += event.tail_size;
            if (result.n_events++ == 0) result.first_serial = serial;
            result.next_serial = serial + 1;
            ++events_built_;
            events_incomplete_ += event.incomplete;
        } else if (event.outcome != Staged::Outcome::skip) {
            count_too_large(staged_size(i));
        }
        for (size_t s = 0; s < width; ++s) {
            if (!parts_[i * width + s].event) continue;
            Fates& fates = sources_[s].fates;
            ++(discard ? fates.discarded : event.incomplete ? fates.incomplete : fates.built);
            decide(sources_[s], parts_[i * width + s].frame);
        }
    }
    staged_.erase(staged_.begin(), staged_.begin() + static_cast<std::ptrdiff_t>(n));
    parts_.erase(parts_.begin(), parts_.begin() + static_cast<std::ptrdiff_t>(n * width));
    if (staged_.empty()) tails_.clear();
    result.bytes = static_cast<size_t>(p - out);
    return result;
}

}  // namespace phloem
