// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "copipe/train/safetensors_reader.hpp"
#include "copipe/train/safetensors_writer.hpp"
#include "says.hpp"
#include "temporary_folder.hpp"

#include <cstring>
#include <nlohmann/json.hpp>
#include <random>

using namespace copipe;
using nlohmann::json;

namespace {

std::string file_of(std::string const& header, std::string const& data) {
    std::uint64_t const length = header.size();
    std::string start(8, '\0');
    std::memcpy(start.data(), &length, 8);
    return start + header + data;
}

std::string read(safetensors_reader const& file, std::string const& name) {
    std::string text(static_cast<std::size_t>(file.at(name).bytes()), '\0');
    file.read(file.at(name), text.data(), text.size());
    return text;
}

/// What the reader says of a file, "" if nothing.
std::string complaint(std::string const& file) {
    temporary_folder const folder;
    put_contents(folder / "x", file);
    try {
        safetensors_reader const opened{folder / "x"};
    } catch (safetensors_error const& refused) {
        CHECK(refused.file == folder / "x");
        CHECK(std::string(refused.what()).starts_with(refused.file));
        return std::string(refused.what()).substr(refused.file.size() + 2);
    }
    return "";
}

} // namespace

TEST_CASE("what was written is read back, tensor by tensor, in any order") {
    temporary_folder const folder;
    std::string const big(100000, 'b'), small = "1234";
    {
        safetensors_writer writer{folder / "x",
                                  {{.name = "layers.0.weight", .dtype = "U8", .shape = {1000, 100}},
                                   {.name = "bias\n\"\\\u00b5", .dtype = "F32", .shape = {}},
                                   {.name = "none", .dtype = "I64", .shape = {0}}},
                                  {{"step", "12"}, {"\t", ""}}};
        writer.write("layers.0.weight", big.data(), big.size());
        writer.write("bias\n\"\\\u00b5", small.data(), small.size());
        writer.commit();
    }
    safetensors_reader const file{folder / "x"};
    CHECK(file.metadata() == std::map<std::string, std::string>{{"step", "12"}, {"\t", ""}});
    CHECK(file.entries().size() == 3);
    CHECK(read(file, "bias\n\"\\\u00b5") == small);
    CHECK(read(file, "layers.0.weight") == big);
    CHECK(read(file, "none").empty());
    CHECK(file.at("layers.0.weight").shape == std::vector<std::uint64_t>{1000, 100});
    CHECK(file.at("none").dtype == "I64");
    CHECK(file.find("other") == nullptr);
    CHECK_THROWS_WITH(file.at("other"), says("tensor other is missing") && says(folder / "x"));
}

TEST_CASE("a part of a tensor can be read, but nothing beyond it") {
    temporary_folder const folder;
    put_contents(folder / "x", file_of(R"({"a":{"dtype":"U8","shape":[6],"data_offsets":[0,6]},)"
                                       R"("b":{"dtype":"U8","shape":[2],"data_offsets":[6,8]}})",
                                       "abcdefgh"));
    safetensors_reader const file{folder / "x"};
    std::string part(3, '\0');
    file.read(file.at("a"), part.data(), part.size(), 2);
    CHECK(part == "cde");
    CHECK_THROWS_WITH(file.read(file.at("a"), part.data(), part.size(), 4),
                      says("tensor a has 6 bytes"));
    CHECK_THROWS_AS(file.read(file.at("b"), nullptr, 0, 3), safetensors_error);
}

TEST_CASE("headers of other writers are read: any order, spaces, escapes") {
    temporary_folder const folder;
    std::string const header = "{ \"b\\u00b5\\ud83d\\ude00\\/\" :\n{\"data_offsets\" : [ 2 , 4 ],\t\"shape\":[ ],"
                               "\"dtype\":\"BF16\"} , \"a\":{\"dtype\":\"U8\",\"shape\":[1,2],"
                               "\"data_offsets\":[0,2]},\"__metadata__\":{}}   ";
    put_contents(folder / "x", file_of(header, "abcd"));
    safetensors_reader const file{folder / "x"};
    CHECK(file.entries()[0].name == "a");
    CHECK(file.entries()[1].name == "b\u00b5\U0001F600/");
    CHECK(read(file, file.entries()[1].name) == "cd");
    CHECK(complaint(file_of("{}", "")).empty());
}

TEST_CASE("a file that is not there or is a folder is refused") {
    temporary_folder const folder;
    CHECK_THROWS_WITH(safetensors_reader{folder / "x"}, says("cannot read") && says("no such file"));
    CHECK_THROWS_WITH(safetensors_reader{folder.path()}, says("folder"));
}

TEST_CASE("every kind of damage is refused with its own words") {
    auto const one = [](std::string const& entry, std::string const& data = "1234") {
        return complaint(file_of("{\"a\":" + entry + "}", data));
    };
    std::string const good = R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
    REQUIRE(one(good).empty());
    CHECK_THAT(complaint("1234567"), says("not a safetensors file"));
    CHECK_THAT(complaint(std::string(8, '\xff')), says("would have 18446744073709551615 bytes"));
    CHECK_THAT(complaint(file_of(" {}", "")), says("does not begin with {"));
    CHECK_THAT(complaint(file_of("", "")), says("does not begin with {"));
    CHECK_THAT(complaint(file_of("{}", "").substr(0, 9)), says("truncated within its header"));
    CHECK_THAT(complaint(file_of("{}x", "")), says("more after its end"));
    CHECK_THAT(complaint(file_of("{}", "123")), says("3 bytes that belong to no tensor"));

    CHECK_THAT(one(good, "123"), says("tensor a is truncated"));
    CHECK_THAT(one(good, "12345"), says("1 bytes that belong to no tensor"));
    CHECK_THAT(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})"), says("tensor a has a data range"));
    CHECK_THAT(one(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})"), says("tensor a has a data range"));
    CHECK_THAT(one(R"({"dtype":"F31","shape":[1],"data_offsets":[0,4]})"), says("tensor a is of type F31"));
    CHECK_THAT(one(R"({"dtype":"F32","shape":[1],"data_offsets":[1,5]})", "12345"), says("belong to no tensor"));
    CHECK_THAT(one(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})", ""), says("data range"));
    CHECK_THAT(one(R"({"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]})"), says("too large"));
    CHECK_THAT(one(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})"), says("count is expected"));
    CHECK_THAT(one(R"({"dtype":"F32","shape":[01],"data_offsets":[0,4]})"), says("count is expected"));
    CHECK_THAT(one(R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})"), says("no ]"));
    CHECK_THAT(one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4,4]})"), says("tensor a are not two"));
    CHECK_THAT(one(R"({"dtype":"F32","shape":[1]})"), says("tensor a lacks"));
    CHECK_THAT(one(R"({"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]})"), says("tensor a occurs twice"));
    CHECK_THAT(one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1})"), says("unknown field x"));
    CHECK_THAT(one("null"), says("no {"));
    CHECK_THAT(complaint(file_of("{\"a\":" + good + ",\"a\":" + good + "}", "1234")), says("tensor a"));
    CHECK_THAT(complaint(file_of(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                                 R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                                 "123")),
               says("tensor b shares bytes"));
    CHECK_THAT(complaint(file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                 R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
                                 "123")),
               says("tensor b follows bytes"));
    CHECK_THAT(complaint(file_of(R"({"__metadata__":{"a":1}})", "")), says("no \""));
    CHECK_THAT(complaint(file_of(R"({"__metadata__":{"a":"1","a":"2"}})", "")), says("twice"));
    CHECK_THAT(complaint(file_of(R"({"__metadata__":{},"__metadata__":{}})", "")), says("twice"));
    CHECK_THAT(complaint(file_of("{\"__metadata__\":{\"a\":\"\xff\"}}", "")), says("UTF-8"));
    CHECK_THAT(complaint(file_of(R"({"__metadata__":{"a":"\ud800"}})", "")), says("UTF-8"));
    CHECK_THAT(complaint(file_of(R"({"__metadata__":{"a":"\ud800\u0041"}})", "")), says("surrogate"));
    CHECK_THAT(complaint(file_of(R"({"__metadata__":{"a":"\u12"}})", "")), says("hex"));
    CHECK_THAT(complaint(file_of(R"({"__metadata__":{"a":"\x"}})", "")), says("escape"));
    CHECK_THAT(complaint(file_of("{\"__metadata__\":{\"a\":\"\n\"}}", "")), says("does not end"));
}

namespace {

std::string const sample =
    file_of(R"({"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
            R"("b.\u00b5":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}}  )",
            "12345678abc");

/// Whether a general JSON reader finds a valid file here, by the format's published rules.
bool is_valid(std::string const& file) {
    std::uint64_t length = 0;
    if (file.size() < 8) return false;
    std::memcpy(&length, file.data(), 8);
    if (length > file.size() - 8 || file[8] != '{') return false;
    json const header = json::parse(file.substr(8, length), nullptr, false);
    if (!header.is_object()) return false;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
    for (auto const& [name, entry] : header.items()) {
        if (!entry.is_object()) return false;
        if (name == "__metadata__") {
            for (json const& value : entry)
                if (!value.is_string()) return false;
            continue;
        }
        if (entry.size() != 3) return false;
        for (auto const* field : {"dtype", "shape", "data_offsets"})
            if (!entry.contains(field)) return false;
        json const &type = entry["dtype"], &shape = entry["shape"], &offsets = entry["data_offsets"];
        if (!shape.is_array() || !offsets.is_array() || offsets.size() != 2) return false;
        for (json const* numbers : {&shape, &offsets})
            for (json const& each : *numbers)
                if (!each.is_number_unsigned()) return false;
        bool const four = type == "F32" || type == "I32" || type == "U32", one = type == "U8" || type == "I8";
        std::uint64_t bytes = four ? 4 : one ? 1 : 0;
        if (bytes == 0) return false;
        for (json const& each : shape) bytes *= each.get<std::uint64_t>();
        ranges.emplace_back(offsets[0], offsets[1]);
        if (ranges.back().second - ranges.back().first != bytes) return false;
    }
    std::sort(ranges.begin(), ranges.end());
    std::uint64_t reached = 0;
    for (auto const& [begin, end] : ranges) {
        if (begin != reached) return false;
        reached = end;
    }
    return reached == file.size() - 8 - length;
}

} // namespace

TEST_CASE("a file that is cut anywhere is refused") {
    REQUIRE(complaint(sample).empty());
    for (std::size_t length = 0; length < sample.size(); ++length) {
        INFO(length << " bytes of " << sample.size());
        CHECK_FALSE(complaint(sample.substr(0, length)).empty());
    }
}

TEST_CASE("of all files that differ in a byte or two, those are read that a general JSON reader finds valid") {
    REQUIRE(is_valid(sample));
    std::mt19937 draw{11};
    constexpr std::string_view likely = "0123456789,:[]{}\"\\ uabtnI8F._-e";
    int valid = 0;
    for (int i = 0; i < 6000; ++i) {
        std::string header = sample.substr(8, sample.size() - 8 - 11);
        for (int changes = i < 3000 ? 1 : 2; changes > 0; --changes) {
            std::size_t const at = draw() % header.size();
            char const byte = draw() % 4 == 0 ? static_cast<char>(draw() % 256) : likely[draw() % likely.size()];
            unsigned const how = draw() % 4;
            if (how == 0) header.erase(at, 1);
            else if (how == 1) header.insert(at, 1, byte);
            else header[at] = byte;
        }
        std::string const file = file_of(header, "12345678abc");
        bool const expected = is_valid(file);
        valid += expected;
        if (complaint(file).empty() != expected) FAIL(header << " is " << (expected ? "valid" : "not valid"));
    }
    CHECK(valid > 100);
}
