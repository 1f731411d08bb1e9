// What two threads of this CPU do at most: multiply-adds, and reads from memory.
//
//     c++ -O3 -march=native -pthread peak.cpp -o peak && ./peak
//
// Prints a line each: "read" in bytes a second, the others in operations a second, a
// multiply-add as two. Each is the best of its turns, both threads at work. What is
// multiplied is float32 by x86's FMA, bfloat16 by AVX512-BF16 (not where AMX is, which
// is faster) and int8 by AVX512-VNNI, each where the CPU has it.
//
//     ./peak reads FILE
//
// Reads a file's first bytes, which are in memory, once for each line of its input, and
// prints the bytes a second of that.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace {

constexpr int THREADS = 2, TURNS = 15;
// Sums that do not wait for one another: 6 cycles of latency, 2 instructions a cycle.
// Each has a name, for those of an array would not stay in registers.
#define EACH_SUM(DO) \
    DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
constexpr int SUMS = 12;
constexpr long STEPS = 2'000'000;
constexpr size_t MOST_BYTES = size_t(1) << 28;  // a thread's, well beyond any cache

volatile float sink;

double least_seconds(const std::function<void(int)>& work, int turns = TURNS) {
    double least = 1e9;
    for (int turn = 0; turn < turns; turn++) {
        const auto begin = std::chrono::steady_clock::now();
        std::thread other(work, 1);
        work(0);
        other.join();
        const std::chrono::duration<double> took =
            std::chrono::steady_clock::now() - begin;
        least = std::min(least, took.count());
    }
    return least;
}

// Times STEPS of SUMS instructions, each of `products` multiply-adds.
template <typename Sum, typename Factor, typename Add>
void multiply(const char* name, int products, Factor given, Add add) {
    const double seconds = least_seconds([=](int) {
        const Factor x = given;
#define BEGIN(i) Sum s##i = {};
        EACH_SUM(BEGIN)
        for (long step = 0; step < STEPS; step++) {
            // The compiler may not look through a sum, or it would drop the work.
#define ADD(i)           \
    s##i = add(s##i, x); \
    asm volatile("" : "+v"(s##i));
            EACH_SUM(ADD)
        }
    });
    std::printf("%s %.6g\n", name, 2.0 * products * SUMS * STEPS * THREADS / seconds);
}

char* memory[THREADS];
size_t bytes = MOST_BYTES;

void fill_memory() {
    for (auto& part : memory) {
        part = static_cast<char*>(std::aligned_alloc(size_t(1) << 21, bytes));
#if defined(MADV_HUGEPAGE)
        madvise(part, bytes, MADV_HUGEPAGE);
#endif
        std::memset(part, 1, bytes);
    }
}

// Maps a file, in huge pages where Linux makes them.
bool map_file(const char* path) {
    struct stat found;
    const int file = open(path, O_RDONLY);
    if (file < 0 || fstat(file, &found)) return false;
    const size_t size = size_t(found.st_size);
    void* mapped = mmap(nullptr, size, PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) return false;
#if defined(__linux__)
    madvise(mapped, size, 25);  // MADV_COLLAPSE, which older headers do not name
#endif
    bytes = std::min(MOST_BYTES, size / THREADS) & ~size_t(511);
    for (int i = 0; i < THREADS; i++) memory[i] = static_cast<char*>(mapped) + i * bytes;
    return true;
}

double bytes_a_second(int turns) {
    const auto read = [](int thread) {
        typedef long Line __attribute__((vector_size(64)));
        const Line* lines = reinterpret_cast<const Line*>(memory[thread]);
        Line sums[8] = {};
        for (size_t i = 0; i < bytes / sizeof(Line); i += 8)
            for (int j = 0; j < 8; j++) {
                __builtin_prefetch(&lines[i + j + 64], 0, 0);
                sums[j] += lines[i + j];
            }
        for (int j = 1; j < 8; j++) sums[0] += sums[j];
        sink = float(sums[0][0]);
    };
    return double(bytes) * THREADS / least_seconds(read, turns);
}

}  // namespace

int main(int count, char** words) {
    if (count == 3 && !std::strcmp(words[1], "reads")) {
        if (!map_file(words[2])) {
            std::perror(words[2]);
            return 1;
        }
        for (int c; (c = std::getchar()) != EOF;)
            if (c == '\n') {
                std::printf("%.6g\n", bytes_a_second(1));
                std::fflush(stdout);
            }
        return 0;
    }
    fill_memory();
    std::printf("read %.6g\n", bytes_a_second(TURNS));
#if defined(__AVX512F__)
    multiply<__m512>("float32", 16, _mm512_set1_ps(1e-3f), [](__m512 s, __m512 x) {
        return _mm512_fmadd_ps(x, x, s);
    });
#elif defined(__FMA__)
    multiply<__m256>("float32", 8, _mm256_set1_ps(1e-3f), [](__m256 s, __m256 x) {
        return _mm256_fmadd_ps(x, x, s);
    });
#endif
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
    const __m512bh pairs = (__m512bh)_mm512_set1_epi32(0x3a833a83);
    multiply<__m512>("bfloat16", 32, pairs, [](__m512 s, __m512bh x) {
        return _mm512_dpbf16_ps(s, x, x);
    });
#endif
#if defined(__AVX512VNNI__)
    multiply<__m512i>("int8", 64, _mm512_set1_epi8(3), [](__m512i s, __m512i x) {
        return _mm512_dpbusd_epi32(s, x, x);
    });
#endif
}
