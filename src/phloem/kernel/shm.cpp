// Files, mappings, locks and futexes under the ring.
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <map>
#include <set>

#include "ring.hpp"

namespace phloem {

namespace {

int64_t clock_ns(clockid_t id) {
    timespec t{};
    clock_gettime(id, &t);
    return t.tv_sec * 1'000'000'000LL + t.tv_nsec;
}

std::string why() { return std::strerror(errno); }

// A process loses all its record locks on a file when it closes any descriptor of it (POSIX), so that each lock
// file is opened once per process and closed with its last claim.
struct LockFile {
    int fd = -1;
    std::set<int> claimed;  // bytes: a record lock does not keep its own process out
};
std::mutex lock_files_mutex;
std::map<std::string, LockFile>& lock_files() {
    static std::map<std::string, LockFile> files;
    return files;
}

flock byte_lock(int byte, short type) {
    flock lock{};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = byte;
    lock.l_len = 1;
    return lock;
}

}  // namespace

int64_t monotonic_ns() { return clock_ns(CLOCK_MONOTONIC); }
int64_t realtime_ns() { return clock_ns(CLOCK_REALTIME); }

void futex_wait(std::atomic<uint32_t>* word, uint32_t expected, int64_t timeout_ns) {
    if (timeout_ns <= 0) return;
    timespec t{timeout_ns / 1'000'000'000, timeout_ns % 1'000'000'000};
    syscall(SYS_futex, word, FUTEX_WAIT, expected, &t, nullptr, 0);
}

void futex_wake(std::atomic<uint32_t>* word) { syscall(SYS_futex, word, FUTEX_WAKE, 1 << 30, nullptr, nullptr, 0); }

// ---------------------------------------------------------------------------------------------- doorbell

BellWords* map_bell(const std::string& path, bool create, int* kept_fd) {
    int fd = open(path.c_str(), O_RDWR | O_CLOEXEC | (create ? O_CREAT : 0), 0600);
    if (fd < 0) {
        if (create) throw RingError("cannot make the doorbell " + path + ": " + why());
        return nullptr;
    }
    if (create && posix_fallocate(fd, 0, 4096) != 0) {
        close(fd);
        throw RingError("no room for the doorbell " + path + " (4096 bytes): is the shared-memory directory full?");
    }
    struct stat info{};
    void* p = MAP_FAILED;
    if (fstat(fd, &info) == 0 && info.st_size >= 4096) p = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (kept_fd && p != MAP_FAILED)
        *kept_fd = fd;
    else
        close(fd);
    if (p == MAP_FAILED) {
        if (create) throw RingError("cannot map the doorbell " + path + ": " + why());
        return nullptr;
    }
    madvise(p, 4096, MADV_DONTFORK);
    return static_cast<BellWords*>(p);
}

void unmap_bell(BellWords* words) {
    if (words) munmap(words, 4096);
}

void ring_bell(BellWords* words) {
    if (words->waiting.load(std::memory_order_seq_cst) == 0) return;
    if (words->waiting.exchange(0, std::memory_order_seq_cst) == 0) return;
    words->count.fetch_add(1, std::memory_order_seq_cst);
    futex_wake(&words->count);
}

Bell::Bell(const std::string& path) : path_(path) { words_ = map_bell(path, true, &fd_); }

Bell::~Bell() {
    unmap_bell(words_);
    if (fd_ >= 0) close(fd_);
}

uint32_t Bell::arm() {
    uint32_t token = words_->count.load(std::memory_order_seq_cst);
    words_->waiting.store(1, std::memory_order_seq_cst);
    return token;
}

void Bell::disarm() { words_->waiting.store(0, std::memory_order_seq_cst); }

void Bell::sleep(uint32_t token, int64_t timeout_ns) {
    futex_wait(&words_->count, token, std::min(timeout_ns, LOOK_AGAIN_NS));
    disarm();
}

void Bell::ring() {
    words_->count.fetch_add(1, std::memory_order_seq_cst);
    futex_wake(&words_->count);
}

// ----------------------------------------------------------------------------------------------- mapping

Mapping::Mapping(const std::string& path, int fd) {
    struct stat info{};
    RingHeader head{};
    if (fstat(fd, &info) != 0) throw RingError("cannot look at ring " + path + ": " + why());
    if (pread(fd, static_cast<void*>(&head), 64, 0) != 64 || std::memcmp(head.magic, "PHLRING1", 8) != 0 ||
        head.version != 1)
        throw RingError(path + " is not a ring of this version");
    if (head.capacity == 0 || head.capacity % CAPACITY_STEP != 0 || head.header_size % 4096 != 0 ||
        head.header_size < SLOTS_OFFSET + uint64_t{head.n_slots} * sizeof(Slot) || static_cast<uint64_t>(info.st_size) != head.header_size + head.capacity)
        throw RingError(path + " is damaged: its header does not agree with its size of " +
                        std::to_string(info.st_size) + " bytes");
    capacity_ = head.capacity;
    inode_ = info.st_ino;
    mapped_ = head.header_size + 2 * head.capacity;
    void* area = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED) throw RingError("no address space for ring " + path + ": " + why());
    base_ = static_cast<uint8_t*>(area);
    const int prot = PROT_READ | PROT_WRITE, how = MAP_SHARED | MAP_FIXED | MAP_POPULATE;
    bool ok = mmap(base_, head.header_size + capacity_, prot, how, fd, 0) != MAP_FAILED &&
              mmap(base_ + head.header_size + capacity_, capacity_, prot, how, fd, head.header_size) != MAP_FAILED;
    if (!ok) {
        munmap(area, mapped_);
        throw RingError("cannot map ring " + path + ": " + why());
    }
    madvise(base_, mapped_, MADV_DONTFORK);
    header_ = reinterpret_cast<RingHeader*>(base_);
    body_ = base_ + head.header_size;
}

Mapping::~Mapping() {
    if (base_) munmap(base_, mapped_);
}

// ------------------------------------------------------------------------------------------------- locks

Claim::Claim(const std::string& ring_path, int byte, const std::string& what) : key_(ring_path + ".lock"), byte_(byte) {
    std::lock_guard guard(lock_files_mutex);
    LockFile& file = lock_files()[key_];
    if (file.claimed.count(byte)) throw RingError(what + " of ring " + ring_path + " is taken by this process");
    if (file.fd < 0) {
        file.fd = open(key_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (file.fd < 0) throw RingError("cannot open the lock file " + key_ + ": " + why());
    }
    flock lock = byte_lock(byte, F_WRLCK);
    if (fcntl(file.fd, F_SETLK, &lock) != 0) {
        flock other = byte_lock(byte, F_WRLCK);
        fcntl(file.fd, F_GETLK, &other);
        if (file.claimed.empty()) {
            close(file.fd);
            lock_files().erase(key_);
        }
        throw RingError(what + " of ring " + ring_path + " is taken by process " + std::to_string(other.l_pid) +
                        "; end that one first");
    }
    file.claimed.insert(byte);
}

Claim::~Claim() {
    std::lock_guard guard(lock_files_mutex);
    auto found = lock_files().find(key_);
    if (found == lock_files().end()) return;
    flock lock = byte_lock(byte_, F_UNLCK);
    fcntl(found->second.fd, F_SETLK, &lock);
    found->second.claimed.erase(byte_);
    if (found->second.claimed.empty()) {
        close(found->second.fd);
        lock_files().erase(found);
    }
}

int Claim::holder(const std::string& ring_path, int byte) {
    std::lock_guard guard(lock_files_mutex);
    const std::string key = ring_path + ".lock";
    auto found = lock_files().find(key);
    if (found != lock_files().end() && found->second.claimed.count(byte)) return getpid();
    int fd = found != lock_files().end() ? found->second.fd : open(key.c_str(), O_RDWR | O_CLOEXEC);
    if (fd < 0) return 0;
    flock lock = byte_lock(byte, F_WRLCK);
    int pid = fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK ? lock.l_pid : 0;
    if (found == lock_files().end()) close(fd);
    return pid;
}

}  // namespace phloem
