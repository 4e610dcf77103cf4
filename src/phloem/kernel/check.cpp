// Serial numbers, with the times as a cross-check: does a source's fragment belong to the event of its number?
#include <algorithm>

#include "builder.hpp"

namespace phloem {

// The time on which most of the event's sources agree, and those that disagree; false: none has a time.
bool Builder::agree(uint64_t key, Agreed& said) const {
    size_t most = 0;
    for (uint32_t i = 0; i < sources_.size(); ++i) {
        const Source& s = sources_[i];
        if (!takes(s, key) || s.held.front().time == NO_TIME) continue;
        Agreed candidate{s.held.front().time, i, {}};
        size_t agreeing = 0;
        for (uint32_t j = 0; j < sources_.size(); ++j) {
            const Source& other = sources_[j];
            if (!takes(other, key) || other.held.front().time == NO_TIME) continue;
            if (near(other.held.front().time, candidate.time))
                ++agreeing;
            else
                candidate.off.push_back(j);
        }
        if (agreeing > most) {
            most = agreeing;
            said = std::move(candidate);
        }
        if (most && said.off.empty()) break;
    }
    return most > 0;
}

// By how many events the head of `s` belongs later; false: `blind_` must send more before that can be said.
bool Builder::look_for(Source& s, uint64_t serial, const Agreed& said, std::optional<int64_t>& shift) {
    const uint64_t time = s.held.front().time;
    shift.reset();
    if (time < said.time) {
        for (auto past = history_.rbegin(); past != history_.rend(); ++past)
            if (near(past->second, time)) {
                shift = static_cast<int64_t>(past->first - serial);
                break;
            }
        return true;
    }
    return look_ahead(said.anchor, serial, time, shift);
}

// The same in what the anchor has passed on beyond this event.
bool Builder::look_ahead(uint32_t number, uint64_t serial, uint64_t time, std::optional<int64_t>& shift) {
    Source& anchor = sources_[number];
    const auto given = std::find_if(anchor.given_blind.begin(), anchor.given_blind.end(),
                                    [serial](const auto& one) { return one.first == serial; });
    const bool decided = given != anchor.given_blind.end();
    for (size_t i = 1; i <= LOOK_EVENTS; ++i) {
        if (!pull(anchor, i + 1)) {
            if (full_) return false;
            if (anchor.over() || decided) return true;
            if (!anchor.blind) {
                blind_ = number;
                return false;
            }
            const uint64_t last = anchor.held[anchor.ready - 1].key;
            anchor.given_blind.emplace_back(serial, last);  // what it sends from now on changes nothing of this event
            looked_.push_back({number, Cause::check, serial, last});
            return true;
        }
        const Fragment& f = anchor.held[i];
        if (decided && f.key > given->second) return true;
        if (f.time == NO_TIME || is_given(anchor, f.key)) continue;
        if (near(f.time, time)) {
            shift = static_cast<int64_t>(f.key - serial);
            return true;
        }
        if (f.time > time) return true;
    }
    return true;
}

void Builder::report(uint32_t source, uint64_t key, std::optional<int64_t> shift) {
    Source& s = sources_[source];
    if (s.told == shift) return;
    s.told = shift;
    reports_.push_back({source, key, shift});
}

Builder::Verdict Builder::check(uint64_t key) {
    checked_time_ = NO_TIME;
    if (options_.check == Check::off || discarding_) return Verdict::fine;
    Agreed said;
    if (!agree(key, said)) return Verdict::fine;
    std::vector<std::optional<int64_t>> shifts(said.off.size());
    for (size_t i = 0; i < said.off.size(); ++i)
        if (!look_for(sources_[said.off[i]], key, said, shifts[i])) return Verdict::wait;
    marks_.insert(marks_.end(), looked_.begin(), looked_.end());
    looked_.clear();
    for (size_t i = 0; i < said.off.size(); ++i) {
        Source& s = sources_[said.off[i]];
        if (options_.check == Check::repair && shifts[i]) {
            s.agrees();
            move(s, *shifts[i], key);
            return Verdict::again;
        }
        if (s.is_unsure()) {
            give_up(s);
            report(said.off[i], key, std::nullopt);
            return Verdict::again;
        }
    }
    for (uint32_t i = 0; i < sources_.size(); ++i) {
        Source& s = sources_[i];
        const auto off = std::find(said.off.begin(), said.off.end(), i);
        if (off != said.off.end()) {
            report(i, key, shifts[static_cast<size_t>(off - said.off.begin())]);
        } else if (takes(s, key) && s.held.front().time != NO_TIME) {
            s.agrees();
            report(i, key, s.held.front().moved);
        }
    }
    if (!said.off.empty() && options_.check == Check::stop) return Verdict::stop;
    checked_time_ = said.time;
    return Verdict::fine;
}

}  // namespace phloem
