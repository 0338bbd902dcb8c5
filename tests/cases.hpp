// SPDX-License-Identifier: Apache-2.0
// How many random cases a test tries: fewer where the compiler does not optimize, which is where sanitizers look on.
#pragma once

constexpr auto cases(int many) -> int {
#ifdef __OPTIMIZE__
    return many;
#else
    return (many + 9) / 10;
#endif
}
