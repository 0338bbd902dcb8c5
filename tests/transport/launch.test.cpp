// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "says.hpp"

#include "copipe/transport/launch.hpp"

#include <map>
#include <optional>
#include <string>
#include <utility>

using namespace copipe;

namespace {

using table = std::map<std::string, std::string>;

auto resolved(table set, launch_options const& given = {}) -> launch {
    return resolve_launch(given, [set = std::move(set)](std::string const& name) -> std::optional<std::string> {
        auto const found = set.find(name);
        return found == set.end() ? std::nullopt : std::optional{found->second};
    });
}
table with(table set, table const& more) {
    for (auto const& [name, value] : more) set[name] = value;
    return set;
}

} // namespace

TEST_CASE("without any variable there is one process") {
    launch const alone = resolved({});
    CHECK(alone.rank == 0);
    CHECK(alone.size == 1);
    CHECK(alone.description() == "one process (one process)");
    CHECK(resolved({{"SLURM_NTASKS", "4"}, {"SLURM_JOB_NODELIST", "n[1-4]"}}).size == 1); // a shell inside a job
}

TEST_CASE("torchrun's variables name rank, size and meeting point") {
    launch const own = resolved({{"RANK", "3"}, {"WORLD_SIZE", "4"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "2"},
                                 {"MASTER_ADDR", "node7"}, {"MASTER_PORT", "1234"}, {"TORCHELASTIC_RUN_ID", "j"}});
    CHECK(own.description() ==
          "rank 3 of 4 (on this machine 1 of 2), told by torchrun; rank 0 is at node7:1234");
    CHECK(own.job == "j");
}

TEST_CASE("the port of torchrun's own store is left to it") {
    table const set{{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_PORT", "1234"}};
    CHECK(resolved(set).port == 1234);
    CHECK(resolved(with(set, {{"TORCHELASTIC_USE_AGENT_STORE", "True"}})).port == 1235);
}

TEST_CASE("rank and size alone mean processes of one machine") {
    launch const own = resolved({{"RANK", "1"}, {"WORLD_SIZE", "2"}});
    CHECK(own.address == "127.0.0.1");
    CHECK(own.local_rank == 1);
    CHECK(own.local_size == 2);
}

TEST_CASE("Open MPI, MPICH and Slurm are understood, the inner launcher before the outer one") {
    table const slurm{{"SLURM_PROCID", "5"},        {"SLURM_NTASKS", "8"},   {"SLURM_LOCALID", "1"},
                      {"SLURM_JOB_NODELIST", "gpu[03-06,9],x"}, {"SLURM_JOB_ID", "41234"}};
    launch own = resolved(slurm);
    CHECK(own.rank == 5);
    CHECK(own.size == 8);
    CHECK(own.local_rank == 1);
    CHECK(own.address == "gpu03");
    CHECK(own.port == 21234);
    CHECK(own.job == "41234");
    CHECK(own.source == "Slurm");
    CHECK(resolved(with(slurm, {{"SLURM_STEP_NUM_TASKS", "6"}})).size == 6); // a step smaller than its job
    CHECK(resolved(with(slurm, {{"SLURM_STEP_NODELIST", "gpu05"}})).address == "gpu05");

    own = resolved(with(slurm, {{"OMPI_COMM_WORLD_RANK", "2"}, {"OMPI_COMM_WORLD_SIZE", "3"},
                                {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "1"}}));
    CHECK(own.description() ==
          "rank 2 of 3 (on this machine 0 of 1), told by Open MPI; rank 0 is at gpu03:21234");

    own = resolved({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "2"}});
    CHECK(own.source == "MPICH");
    CHECK(own.local_rank == 1);
}

TEST_CASE("explicit options go before variables") {
    table const set{{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "7"}};
    launch const own = resolved(set, {.rank = 4, .size = 5, .port = 99, .address = "b", .job = "mine"});
    CHECK(own.description() ==
          "rank 4 of 5 (on this machine 4 of 5), told by explicit options; rank 0 is at b:99");
    CHECK(own.job == "mine");
    CHECK(resolved(set, {.port = 99}).port == 99);
}

TEST_CASE("a place that cannot be is refused by a sentence that names the variable") {
    auto const refused = [](table const& set, std::string const& words, launch_options const& given = {}) {
        CHECK_THROWS_WITH(resolved(set, given), says(words));
        CHECK_THROWS_AS(resolved(set, given), launch_error);
    };
    refused({{"RANK", "1"}}, "RANK is set, but WORLD_SIZE is not");
    refused({{"WORLD_SIZE", "2"}}, "WORLD_SIZE is set, but RANK is not");
    refused({{"RANK", "2"}, {"WORLD_SIZE", "2"}}, "RANK is 2 and WORLD_SIZE is 2");
    refused({{"RANK", "-1"}, {"WORLD_SIZE", "2"}}, "RANK is -1");
    refused({{"RANK", "one"}, {"WORLD_SIZE", "2"}}, "RANK is \"one\", which is no whole number");
    refused({{"RANK", "0"}, {"WORLD_SIZE", "0"}}, "WORLD_SIZE is 0");
    refused({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "2"}, {"LOCAL_WORLD_SIZE", "2"}},
            "LOCAL_RANK is 2 and LOCAL_WORLD_SIZE is 2");
    refused({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "0"}, {"LOCAL_WORLD_SIZE", "3"}},
            "LOCAL_WORLD_SIZE is 3, more than WORLD_SIZE");
    refused({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "0"}, {"LOCAL_WORLD_SIZE", "1"}},
            "MASTER_ADDR is not set");
    refused({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_PORT", "70000"}}, "MASTER_PORT is 70000");
    refused({{"SLURM_PROCID", "0"}}, "SLURM_PROCID is set, but SLURM_NTASKS is not");
    refused({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "2"}, {"SLURM_JOB_NODELIST", "n["}},
            "SLURM_JOB_NODELIST is \"n[\"");
    refused({}, "the number of processes is missing", {.rank = 1});
    refused({}, "the rank is missing", {.size = 1});
    refused({}, "a local rank is given", {.local_rank = 1});
}

TEST_CASE("the first host of a list in Slurm's notation") {
    CHECK(first_host("login") == "login");
    CHECK(first_host("a,b[1-2]") == "a");
    CHECK(first_host("rack[3-5,9]-gpu[01-16],login") == "rack3-gpu01");
    CHECK(first_host("n[007]") == "n007");
    for (auto const* wrong : {"", "[", "n[]", "n[x-y]", "n]", ",a"}) CHECK_THROWS_AS(first_host(wrong), launch_error);
}
