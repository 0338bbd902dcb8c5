// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "copipe/observe/table.hpp"

#include <limits>

using namespace copipe;

TEST_CASE("columns are as wide as their widest cell, the first aligned left, the others right") {
    text_table table;
    table.row({"policy", "step", "loss"});
    table.row({"one_f_one_b", "1.5 s", "2.25"});
    table.row({"gpipe"});
    CHECK(table.text() == "policy        step  loss\n"
                          "one_f_one_b  1.5 s  2.25\n"
                          "gpipe\n");
}

TEST_CASE("numbers are written for reading") {
    CHECK(decimal(1.005, 1) == "1.0");
    CHECK(decimal(std::numeric_limits<double>::quiet_NaN(), 1) == "-");
    CHECK(decimal(-std::numeric_limits<double>::max(), 2).size() == 313);
    CHECK(percent(0.1234) == "12.3 %");
    CHECK(grouped(0) == "0");
    CHECK(grouped(999) == "999");
    CHECK(grouped(-1000) == "-1,000");
    CHECK(grouped(1234567) == "1,234,567");
    CHECK(byte_count(0) == "0 B");
    CHECK(byte_count(1023) == "1023 B");
    CHECK(byte_count(1024) == "1.0 KiB");
    CHECK(byte_count((std::size_t{1} << 20) - 1) == "1.0 MiB");
    CHECK(byte_count(std::size_t{5} << 30) == "5.0 GiB");
    CHECK(clock_time(6.6) == "0:07");
    CHECK(clock_time(59.7) == "1:00");
    CHECK(clock_time(754) == "12:34");
    CHECK(clock_time(3600 * 3 + 25 * 60 + 45) == "3:25:45");
    CHECK(clock_time(std::numeric_limits<double>::infinity()) == "-");
}
