#pragma once
// Compiles a function for several generations of x86 and takes the best at load time. Same bits: the code is integer,
// or rounds every operation on its own (-ffp-contract=off).
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define MULTIVERSION __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4"))) static
#else
#define MULTIVERSION static
#endif
