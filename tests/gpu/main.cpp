// SPDX-License-Identifier: Apache-2.0
// The main function of the tests that need a GPU: without one it says so and exits with 77, which means skipped.
#if __has_include(<catch2/catch_session.hpp>)
#include <catch2/catch_session.hpp>
#else
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>
#endif

#include "copipe/device/cuda_error.hpp"

#include <iostream>

auto main(int count, char** arguments) -> int {
    auto const gpus = copipe::cuda_gpus::here();
    if (gpus.count == 0) {
        std::cout << "skipped, as these tests need a GPU: " << gpus.why << '\n';
        return 77;
    }
    return Catch::Session().run(count, arguments);
}
