// The frame: what a transport moves. A fixed header, then whole events back to back at 8-byte steps (the body),
// then sections of meta data (checkpoint, marks, who the source is). Layout: docs/protocol.md, protocol/data.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace phloem {

constexpr uint32_t FRAME_MAGIC = 0x464c4850;  // "PHLF" in memory
constexpr uint16_t FRAME_VERSION = 1;
constexpr size_t FRAME_ALIGN = 64;  // a cache line, so that writer and reader never share one

enum class FrameKind : uint16_t {
    begin_of_run = 1,
    events = 2,
    end_of_run = 3,
    info = 4,
    checkpoint = 5,
    rejoin = 6,
};

constexpr uint16_t FRAME_CRC = 1;        // flags: crc32c is set
constexpr uint16_t FRAME_UNALIGNED = 2;  // flags: an event is not a multiple of 8 bytes long; padding follows it

struct FrameHeader {
    uint32_t magic;
    uint16_t version;
    uint16_t kind;
    uint32_t run;
    uint16_t lane;
    uint16_t flags;
    uint64_t sequence;      // of this ring's generation, from 0
    uint64_t body_size;     // bytes of the body, with padding
    uint64_t meta_size;     // bytes of the meta sections
    uint32_t n_events;      // in the body
    uint32_t first_serial;  // of the first event
    uint32_t next_serial;   // the last event's serial number + 1
    uint32_t crc32c;        // of body and meta, where FRAME_CRC is set
    uint64_t time_ns;       // CLOCK_REALTIME when it was closed
    uint64_t total_events;  // sent by this source in this run, this frame included
    uint64_t total_bytes;
    uint64_t generation;  // of the ring
    uint64_t size;        // of the whole frame in the ring, a multiple of FRAME_ALIGN
    uint8_t reserved[32];
};
static_assert(sizeof(FrameHeader) == 128);

struct EventHeader {
    uint16_t event_id;
    uint16_t trigger_mask;
    uint32_t serial_number;
    uint32_t time_stamp;
    uint32_t data_size;
};
static_assert(sizeof(EventHeader) == 16);

constexpr size_t align_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

inline uint32_t load_u32(const uint8_t* p) {
    uint32_t v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline uint16_t load_u16(const uint8_t* p) {
    uint16_t v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline uint64_t load_u64(const uint8_t* p) {
    uint64_t v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store_u32(uint8_t* p, uint32_t v) { std::memcpy(p, &v, sizeof v); }
inline void store_u16(uint8_t* p, uint16_t v) { std::memcpy(p, &v, sizeof v); }
inline void store_u64(uint8_t* p, uint64_t v) { std::memcpy(p, &v, sizeof v); }

}  // namespace phloem
