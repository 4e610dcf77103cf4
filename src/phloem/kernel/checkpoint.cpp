// All that a builder must know to go on after a crash, as bytes. Layout: protocol/data.py, "CHECKPOINT".
#include <algorithm>

#include "builder.hpp"

namespace phloem {

namespace {
constexpr size_t SOURCE_BYTES = 216, HEAD_BYTES = 48, MARK_BYTES = 24, SECTIONS_BYTES = 96;

template <class T>
void put(std::vector<uint8_t>& out, T value) {
    const auto* p = reinterpret_cast<const uint8_t*>(&value);
    out.insert(out.end(), p, p + sizeof value);
}
}  // namespace

size_t Builder::meta_bound() const {
    const size_t n = sources_.size(), ranges = 2 * (parts_.size() + n_kept_ + n) + n_missed_ + 2 * n;
    return SECTIONS_BYTES + HEAD_BYTES + n * SOURCE_BYTES + 16 * ranges +
           16 * (history_.size() + 1) + MARK_BYTES * (marks_.size() + sources_.size()) + late_.size() + quarantined_.size();
}

std::vector<uint8_t> Builder::checkpoint(const std::vector<uint64_t>& generations) const {
    std::vector<uint8_t> out;
    put<uint32_t>(out, 2);
    put<uint32_t>(out, run_);
    put<uint64_t>(out, next_serial_);
    put<uint64_t>(out, count_);
    put<uint64_t>(out, epoch_known_ ? epoch_ : 0);
    put<uint32_t>(out, static_cast<uint32_t>(sources_.size()));
    put<uint32_t>(out, static_cast<uint32_t>(history_.size()));
    put<uint32_t>(out, discarding_);
    put<uint32_t>(out, 0);
    for (const auto& [serial, time] : history_) {
        put<uint64_t>(out, serial);
        put<uint64_t>(out, time);
    }
    for (size_t i = 0; i < sources_.size(); ++i) {
        const Source& s = sources_[i];
        const bool reading = s.reading < s.frames.size();
        const auto frame_of = [&s](const Fragment& f) { return s.frames[f.frame - s.first_frame].sequence; };
        std::vector<const Fragment*> undecided;
        for (size_t at = i; at < parts_.size(); at += sources_.size())
            if (parts_[at].event) undecided.push_back(&parts_[at]);
        for (const Fragment& f : s.held) undecided.push_back(&f);
        if (s.far) undecided.push_back(&*s.far);
        put<uint64_t>(out, i < generations.size() ? generations[i] : 0);
        put<uint64_t>(out, reading ? s.frames[s.reading].sequence : s.read_sequence + 1);
        put<uint32_t>(out, reading ? s.frames[s.reading].next_index : 0);
        put<uint32_t>(out, s.started | s.ended << 1 | (s.absent != Cause{}) << 2 | s.restarted << 3 | s.told.has_value() << 4 |
                               s.blind << 5 | s.paired.has_value() << 6);
        for (uint64_t value : {s.highest, s.next_pass, s.floor, s.fates.received, s.fates.built, s.fates.incomplete,
                               s.fates.late, s.fates.duplicate, s.fates.discarded, s.fates.quarantined, s.first,
                               s.highest_time, s.again_next, static_cast<uint64_t>(s.total_shift),
                               static_cast<uint64_t>(s.told.value_or(0)),
                               uint64_t{s.sure} << 32 | s.pairing, s.last_passed,
                               static_cast<uint64_t>(s.paired ? s.paired->delta : 0), s.paired ? s.paired->before : 0})
            put<uint64_t>(out, value);
        put<uint32_t>(out, s.begins);
        put<uint32_t>(out, s.paired ? s.paired->number : 0);
        put<uint32_t>(out, s.shift);
        put<uint32_t>(out, s.again);
        put<uint32_t>(out, static_cast<uint32_t>(s.absent));
        put<uint32_t>(out, static_cast<uint32_t>(undecided.size()));
        put<uint32_t>(out, static_cast<uint32_t>(s.missed.size()));
        put<uint32_t>(out, static_cast<uint32_t>(s.recent.size()));
        for (const Fragment* f : undecided) {
            put<uint64_t>(out, frame_of(*f));
            put<uint32_t>(out, f->index);
            put<uint32_t>(out, (s.far && f == &*s.far) | f->pairing << 1);
            put<uint64_t>(out, f->key);
            put<int64_t>(out, f->moved);
        }
        for (const auto& [first, last] : s.missed) {
            put<uint64_t>(out, first);
            put<uint64_t>(out, last);
        }
        for (const auto& [key, serial] : s.recent) {
            put<uint64_t>(out, key);
            put<uint64_t>(out, serial);
        }
    }
    return out;
}

}  // namespace phloem
