// Walking and converting banks. Layouts: MIDAS reference, section 1.2.
#include "builder.hpp"

namespace phloem {

namespace {

constexpr uint32_t BANK = 0x01, BANK32 = 0x11, BANK32A = 0x31;

struct BankHeader {
    size_t header_size;
    uint32_t tid;
    size_t size;
};

BankHeader read_bank(const uint8_t* p, uint32_t flags) {
    if (flags == BANK) return {8, load_u16(p + 4), load_u16(p + 6)};
    return {flags == BANK32 ? size_t{12} : size_t{16}, load_u32(p + 4), load_u32(p + 8)};
}

}  // namespace

int64_t banks_size_as_bank32a(const uint8_t* event, size_t available) {
    if (available < 24) return -1;
    const size_t data_size = load_u32(event + 12);
    if (data_size > available - 16 || data_size < 8) return -1;
    const size_t area = load_u32(event + 16);
    const uint32_t flags = load_u32(event + 20);
    if (area + 8 != data_size || (flags != BANK && flags != BANK32 && flags != BANK32A)) return -1;
    const size_t header_size = flags == BANK ? 8 : flags == BANK32 ? 12 : 16;
    const uint8_t* p = event + 24;
    size_t at = 0, size = 0;
    while (at < area) {
        if (area - at < header_size) return -1;
        const BankHeader bank = read_bank(p + at, flags);
        const size_t padded = align_up(bank.size, 8);
        if (padded > area - at - header_size) return -1;
        at += header_size + padded;
        size += 16 + padded;
    }
    if (size > 0xFFFFFFF0u - 8) return -1;
    return static_cast<int64_t>(size);
}

const uint8_t* find_bank(const uint8_t* event, const char* name, uint32_t& tid, size_t& size) {
    const uint32_t flags = load_u32(event + 20);
    const size_t header_size = flags == BANK ? 8 : flags == BANK32 ? 12 : 16;
    const uint8_t *p = event + 24, *end = p + load_u32(event + 16);
    while (p < end) {
        const BankHeader bank = read_bank(p, flags);
        if (std::memcmp(p, name, 4) == 0) {
            tid = bank.tid;
            size = bank.size;
            return p + header_size;
        }
        p += header_size + align_up(bank.size, 8);
    }
    return nullptr;
}

uint8_t* close_bank(uint8_t* p, const char* name, uint32_t tid, size_t size) {
    const size_t padded = align_up(size, 8);
    std::memcpy(p, name, 4);
    store_u32(p + 4, tid);
    store_u32(p + 8, static_cast<uint32_t>(size));
    store_u32(p + 12, 0);
    std::memset(p + 16 + size, 0, padded - size);
    return p + 16 + padded;
}

void append_bank(std::vector<uint8_t>& out, const char* name, uint32_t tid, const uint8_t* data, size_t size) {
    const size_t begin = out.size();
    out.resize(begin + 16 + align_up(size, 8));
    if (size) std::memcpy(out.data() + begin + 16, data, size);
    close_bank(out.data() + begin, name, tid, size);
}

uint8_t* put_event_header(uint8_t* p, const EventHeader& header, size_t banks_size) {
    std::memcpy(p, &header, sizeof header);
    store_u32(p + 12, static_cast<uint32_t>(banks_size + 8));
    store_u32(p + 16, static_cast<uint32_t>(banks_size));
    store_u32(p + 20, BANK32A);
    return p + 24;
}

uint8_t* copy_banks_as_bank32a(uint8_t* out, const uint8_t* event, uint32_t banks_size) {
    const uint32_t flags = load_u32(event + 20);
    const uint8_t* p = event + 24;
    if (flags == BANK32A) {
        std::memcpy(out, p, banks_size);
        return out + banks_size;
    }
    const uint8_t* end = p + load_u32(event + 16);
    while (p < end) {
        const BankHeader bank = read_bank(p, flags);
        std::memcpy(out + 16, p + bank.header_size, bank.size);
        out = close_bank(out, reinterpret_cast<const char*>(p), bank.tid, bank.size);
        p += bank.header_size + align_up(bank.size, 8);
    }
    return out;
}

}  // namespace phloem
