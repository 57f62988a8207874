/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Code that changes while it is used, as a just-in-time compiler's does. Writes a function that returns n,
 * calls it, sleeps and calls it again: it must still return n. "STALE n" on the standard output says that it
 * did not. No library.
 */
static long call(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

static void print(const char *word, unsigned value)
{
	char line[64], digits[12];
	int length = 0, count = 0;

	while (*word)
		line[length++] = *word++;
	do {
		digits[count++] = '0' + value % 10;
		value /= 10;
	} while (value);
	while (count)
		line[length++] = digits[--count];
	line[length++] = '\n';
	call(1 /* write */, 1, (long)line, length, 0, 0, 0);
}

__attribute__((force_align_arg_pointer)) void _start(void)
{
	struct {
		long seconds, nanoseconds;
	} pause = { 0, 5000000 };
	/* One page, readable, writable and executable; private and anonymous. */
	volatile unsigned char *code = (void *)call(9 /* mmap */, 0, 4096, 7, 0x22, -1, 0);

	for (unsigned n = 1;; n++) {
		code[0] = 0xb8; /* mov eax, n */
		*(volatile unsigned *)(code + 1) = n;
		code[5] = 0xc3; /* ret */
		unsigned before = ((unsigned (*)(void))code)();
		call(35 /* nanosleep */, (long)&pause, 0, 0, 0, 0, 0);
		unsigned after = ((unsigned (*)(void))code)();
		if (before != n || after != n)
			print("STALE ", after);
		if (n % 20 == 0)
			print("rounds ", n);
	}
}
