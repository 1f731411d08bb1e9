/* Runs the kernels on what it reads, and writes what they return.

   In, until the end: 64-bit integers (10 for the kernel, the bytes of its three
   inputs, of its output and of its scratch), then the inputs. Out: the outputs. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

extern void kernel(const int64_t *sizes, const void *first, void *second,
                   const void *third, void *output, void *scratch);

/* Rounds to bfloat16, to the nearest and ties to even, as GCC 13's library does and
   older ones do not. The result is expected in the lower half of a float's register. */
float __truncsfbf2(float x) {
  union {
    float f;
    uint32_t u;
  } bits = {x};
  bits.u = (bits.u + 0x7FFF + (bits.u >> 16 & 1)) >> 16;
  return bits.f;
}

/* What Mojo's lists take their memory from. */
void *KGEN_CompilerRT_AlignedAlloc(size_t alignment, size_t size) {
  alignment = alignment < sizeof(void *) ? sizeof(void *) : alignment;
  return aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}

void KGEN_CompilerRT_AlignedFree(void *memory) { free(memory); }

int main(void) {
  int64_t head[15];
  while (fread(head, sizeof head, 1, stdin) == 1) {
    void *arrays[5];
    for (int i = 0; i < 5; i++) {
      arrays[i] = malloc(head[10 + i] + 1);
      if (!arrays[i] || (i < 3 && fread(arrays[i], 1, head[10 + i], stdin) !=
                                      (size_t)head[10 + i]))
        return 1;
    }
    kernel(head, arrays[0], arrays[1], arrays[2], arrays[3], arrays[4]);
    if (fwrite(arrays[3], 1, head[13], stdout) != (size_t)head[13])
      return 1;
    for (int i = 0; i < 5; i++)
      free(arrays[i]);
  }
  return 0;
}
