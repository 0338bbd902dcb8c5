// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "copipe/train/safetensors_writer.hpp"
#include "says.hpp"
#include "temporary_folder.hpp"

#include <cstring>
#include <nlohmann/json.hpp>
#include <thread>

using namespace copipe;

namespace {

void write(safetensors_writer& to, std::string_view name, std::string const& bytes) {
    to.write(name, bytes.data(), bytes.size());
}

} // namespace

TEST_CASE("a file has the format's very bytes") {
    temporary_folder const folder;
    safetensors_writer writer{folder / "x", {{.name = "a", .dtype = "U8", .shape = {2, 1}}}, {{"k", "v"}}};
    write(writer, "a", "\x07\x08");
    writer.commit();
    std::string const header = R"({"__metadata__":{"k":"v"},"a":{"dtype":"U8","shape":[2,1],"data_offsets":[0,2]}})";
    std::size_t const length = (header.size() + 7) / 8 * 8; // padded with spaces
    CHECK(contents(folder / "x") == std::string(1, static_cast<char>(length)) + std::string(7, '\0') + header +
                                        std::string(length - header.size(), ' ') + "\x07\x08");
}

TEST_CASE("tensors can be written in any order, by several threads, and each lies at its aligned place") {
    temporary_folder const folder;
    std::vector<tensor_entry> entries;
    char const* const types[] = {"U8", "F32", "BF16", "I64"};
    for (int i = 0; i < 40; ++i)
        entries.push_back({.name = "layers." + std::to_string(i) + ".\"\u00b5\\", .dtype = types[i % 4],
                           .shape = {static_cast<std::uint64_t>(i), 3}});
    safetensors_writer writer{folder / "x", entries};
    auto const content = [](tensor_entry const& entry) {
        auto const filler = static_cast<char>(entry.name.size() + entry.shape[0]);
        return std::string(static_cast<std::size_t>(entry.bytes()), filler);
    };
    std::vector<std::thread> threads;
    for (std::size_t t = 0; t < 4; ++t)
        threads.emplace_back([&, t] {
            for (std::size_t i = writer.entries().size(); i-- > 0;)
                if (i % 4 == t) write(writer, writer.entries()[i].name, content(writer.entries()[i]));
        });
    for (auto& each : threads) each.join();
    CHECK_FALSE(std::filesystem::exists(folder / "x"));
    writer.commit();

    std::string const file = contents(folder / "x");
    std::uint64_t length = 0;
    std::memcpy(&length, file.data(), 8);
    CHECK(length % 8 == 0);
    auto const header = nlohmann::json::parse(file.substr(8, length));
    CHECK(header.size() == entries.size() + 1);
    for (tensor_entry const& each : writer.entries()) {
        auto const& said = header.at(each.name);
        CHECK(said["dtype"] == each.dtype);
        CHECK(said["shape"] == each.shape);
        CHECK(said["data_offsets"] == std::vector{each.begin, each.end});
        CHECK(each.begin % element_bytes(each.dtype) == 0);
        CHECK(file.substr(8 + length + each.begin, each.bytes()) == content(each));
    }
}

TEST_CASE("a file with a tensor missing is not committed, and nothing is left of it") {
    temporary_folder const folder;
    put_contents(folder / "x", "older");
    {
        safetensors_writer writer{folder / "x", {{.name = "a", .dtype = "U8", .shape = {1}},
                                                 {.name = "b", .dtype = "U8", .shape = {1}}}};
        write(writer, "a", "1");
        CHECK_THROWS_WITH(writer.commit(), says("tensor b has not been written"));
    }
    CHECK(contents(folder / "x") == "older");
    CHECK(folder.entries() == 1);
}

TEST_CASE("tensors without elements need not be written") {
    temporary_folder const folder;
    safetensors_writer writer{folder / "x", {{.name = "a", .dtype = "F32", .shape = {0, 5}}}};
    CHECK_NOTHROW(writer.commit());
}

TEST_CASE("a tensor that does not belong, has another size or comes twice is refused by name") {
    temporary_folder const folder;
    safetensors_writer writer{folder / "x", {{.name = "a", .dtype = "F32", .shape = {}}}};
    CHECK_THROWS_WITH(write(writer, "c", ""), says("tensor c") && says(folder / "x"));
    CHECK_THROWS_WITH(write(writer, "a", "12345"), says("tensor a has 4 bytes, not 5"));
    write(writer, "a", "1234");
    CHECK_THROWS_WITH(write(writer, "a", "1234"), says("tensor a is written twice"));
}

TEST_CASE("entries that the format cannot express are refused before a file is begun") {
    temporary_folder const folder;
    auto const make = [&](std::vector<tensor_entry> entries) { safetensors_writer{folder / "x", std::move(entries)}; };
    CHECK_THROWS_WITH(make({{.name = "a", .dtype = "F33"}}), says("tensor a") && says("F33"));
    CHECK_THROWS_WITH(make({{.name = "a", .dtype = "F32", .shape = {1ULL << 40, 1ULL << 40}}}), says("too large"));
    CHECK_THROWS_WITH(make({{.name = "__metadata__", .dtype = "F32"}}), says("does not allow"));
    CHECK_THROWS_WITH(make({{.name = "\xff", .dtype = "F32"}}), says("does not allow"));
    CHECK_THROWS_WITH(make({{.name = "a", .dtype = "F32"}, {.name = "a", .dtype = "U8"}}), says("a occurs twice"));
    CHECK_THROWS_AS((safetensors_writer{folder / "x", {}, {{"k", "\xff"}}}), safetensors_error);
    CHECK_THROWS_WITH((safetensors_writer{folder / "no/x", {}}), says("no/x"));
    CHECK(folder.entries() == 0);
}
