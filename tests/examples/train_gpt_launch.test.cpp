// SPDX-License-Identifier: Apache-2.0
// The program train_gpt as a launcher starts it: several processes, one for each rank, on the CPU.
#include "catch.hpp"

#include "transport/processes.hpp"
#include "workplace.hpp"

#include <algorithm>
#include <chrono>
#include <string>

TEST_CASE("launched several times with torchrun's variables, it is one pipeline and learns what one process does") {
    workplace const here;
    words const steps{"--policy", "dualpipe_v", "--steps", "4", "--checkpoint", "model"};
    auto const reference = here.losses(under("dualpipe_v", 3) + words{"--steps", "4"});
    int const port = free_port();
    program others[] = {here.start_rank(2, 3, port, steps), here.start_rank(1, 3, port, steps)};
    outcome const first = here.start_rank(0, 3, port, steps + words{"--log", "job"}).end();
    INFO(first.err);
    CHECK(first.code == 0);
    CHECK(first.out.find("rank 0 of 3 (on this machine 0 of 3), told by torchrun") != std::string::npos);
    for (program& each : others) {
        outcome const ended = each.end();
        CHECK(ended.code == 0);
        CHECK(ended.err == "");
        CHECK(std::count(ended.out.begin(), ended.out.end(), '\n') == 1);
    }
    CHECK(here.logged("job") == reference);
    CHECK(here.run(under("gpipe", 2) + words{"--steps", "5", "--resume", "model"}).code == 0);
}

TEST_CASE("launched with variables that contradict each other, it says so in one line, with exit code 2") {
    workplace const here;
    require_refused(here.start_rank(2, 2, 1, {}).end(), "RANK is 2 and WORLD_SIZE is 2");
    require_refused(here.start_rank(0, 2, 1, under("dualpipe_v", 4)).end(), "processes: start one process per rank");
}

TEST_CASE("processes launched as of different numbers all end with exit code 2, told which ranks differ and how") {
    workplace const here;
    int const port = free_port();
    words const cpu{"--device", "cpu"};
    program others[] = {here.start_rank(1, 3, port, cpu), here.start_rank(2, 3, port, cpu)};
    std::string const host = here.start_rank(0, 2, port, cpu).end().err;
    std::string const differ = " was started as one of 3 processes, rank 0 as one of 2: start all with the same "
                               "WORLD_SIZE";
    CHECK(host.find(differ) != std::string::npos);
    for (program& each : others) {
        outcome const ended = each.end();
        require_refused(ended, differ);
        CHECK(ended.err == host);
    }
}

TEST_CASE("a process that cannot reach rank 0, or waits for others in vain, gives up in time with exit code 2") {
    workplace const here;
    auto const begin = std::chrono::steady_clock::now();
    words const hurried{"--device", "cpu", "--meet-within", "1"};
    int const port = free_port();
    require_refused(here.start_rank(1, 2, port, hurried).end(),
                    "rank 1 could not reach rank 0 at 127.0.0.1:" + std::to_string(port) + " within 1.000 s");
    require_refused(here.start_rank(0, 3, port, hurried).end(), "within 1.000 s: missing are the ranks 1, 2");
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds{40}); // by default it waits for a minute
}
