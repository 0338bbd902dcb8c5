#!/usr/bin/env perl
# SPDX-License-Identifier: Apache-2.0
# What no compiler checks: coroutine traps of g++ 12, which room may include which, and the form of files.
#   tests/lint.pl              checks the checkout it lies in and prints FILE:LINE: sentence for each finding
#   tests/lint.pl --self-test  proves on small samples that each rule catches what it forbids and nothing else
use strict;
use warnings;

# Which room may include which others. A room that is not listed here has no place in the house yet.
my %may_include = (
    async      => [],
    schedule   => [],
    device     => [qw(async)],
    transport  => [qw(async device)],
    model      => [qw(async device)],
    pipeline   => [qw(async schedule device transport model)],
    balance    => [qw(schedule model)],
    plan       => [qw(schedule balance model)],
    observe    => [qw(schedule)],
    resilience => [qw(async schedule device transport model pipeline balance)],
    train      => [qw(async schedule device transport model pipeline balance plan observe resilience)],
);
# Headers that the umbrella leaves out, because they need a GPU, MPI or Torch, or because sockets take long to compile.
my $outside_umbrella = qr{cuda|nccl|mpi|torch|transport/(?:rendezvous|tcp)};

my $parens = qr/(?<parens>\((?:[^()]++|(?&parens))*+\))/;
my $braces = qr/(?<braces>\{(?:[^{}]++|(?&braces))*+\})/;

# Comments and literals blanked out, so that rules see code only; every line keeps its number and length.
sub code_of {
    my ($text) = @_;
    my $blank = sub { my $part = shift; $part =~ s/[^\n]/ /g; return $part };
    $text =~ s{
        ( //[^\n]* | /\*.*?\*/ )
        | R"(?<mark>[^\s()\\]*)\(.*?\)\g{mark}"
        | "(?:\\.|[^"\\\n])*"
        | (?<![0-9A-Za-z_])'(?:\\.|[^'\\\n])+'
    }{ $blank->($&) }gsex;
    return $text;
}

# A piece of code without the bodies of the lambdas in it: what they await is awaited elsewhere.
sub without_bodies { my ($piece) = @_; $piece =~ s/$braces//g; return $piece }

sub every_match {
    my ($text, $pattern) = @_;
    my @at;
    push @at, $-[0] while $text =~ /$pattern/g;
    return @at;
}

# Each rule: which files it reads, what it finds in one (offsets into the text), and samples that prove it.
my $cpp    = qr{\.(?:hpp|cpp|cu|cuh)$};
my $header = qr{^include/.*\.hpp$};
my @rules  = (
    {
        says  => 'co_await in the condition of if, while, do or switch crashes g++ 12: bind the result first',
        files => $cpp,
        finds => sub {
            my (undef, undef, $code) = @_;
            my @at;
            while ($code =~ /\b(?:if|while|switch)\s*(?:constexpr\s*)?$parens/g) {
                my $at = $-[0];
                push @at, $at if without_bodies($+{parens}) =~ /\bco_await\b/;
            }
            return @at;
        },
        bad   => ['if (co_await ready()) {}', "while (x &&\n (co_await y)) {}", 'do { f(); } while (co_await z);',
                  'switch (auto v = co_await w; v) {}'],
        good  => ['bool const ok = co_await ready(); if (ok) {}', '// if (co_await x)', 'puts("if (co_await x)");',
                  'if (run([]() -> task<> { co_await x; })) {}'],
    },
    {
        says  => 'an assertion macro may evaluate its argument twice: bind the awaited result first',
        files => $cpp,
        finds => sub {
            my (undef, undef, $code) = @_;
            my @at;
            while ($code =~ /\b(?:REQUIRE|CHECK)(?:_\w+)?\s*$parens/g) {
                my $at = $-[0];
                push @at, $at if without_bodies($+{parens}) =~ /\bco_await\b/;
            }
            return @at;
        },
        bad   => ['REQUIRE(co_await x == 1);', 'CHECK_FALSE( f(co_await x) );'],
        good  => ['auto const got = co_await x; REQUIRE(got == 1);',
                 'CHECK_THROWS_AS(run([&]() -> task<> { co_await x; }), error);'],
    },
    {
        says  => 'beside co_await, g++ 12 destroys a braced aggregate, or a closure that captures by value, twice: '
               . 'name it first',
        files => $cpp,
        finds => sub {
            my (undef, undef, $code) = @_;
            my @at = every_match($code, qr/\bco_await\s+[\w:]+(?:<[^<>;]*>)?\s*\{[^{};]*\}\s*\./);
            push @at, every_match($code, qr/\?\s*co_await\b[^;?:]*:\s*[\w:]+(?:<[^<>;]*>)?\s*\{/);
            while ($code =~ /\bco_await\b([^;{}]*)/g) {
                my ($start, $awaited) = ($-[0], $1);
                while ($awaited =~ /(?<![\w\])\[])\s*\[([^\[\]]+)\]\s*(?:\(|$|mutable)/g) {
                    push @at, $start if grep { !/^\s*(?:&.*|this)\s*$/s } split /,/, $1;
                }
            }
            return @at;
        },
        bad   => ['co_await [x]() -> task<> { co_return; }();', 'co_await s.spawn([n = std::move(n)] { use(n); });',
                  'co_await options{.a = 1}.run();', 'auto v = b ? co_await f() : text{};',
                  "co_await in(a, [=]\n{ f(); });"],
        good  => ['co_await [&]() -> task<> { co_return; }();', 'co_await s.spawn([this, &x] { f(x); });',
                  'co_await queues[i](x);', 'co_await table[i][j];',
                  'auto const run = [x] { f(x); }; co_await g(run);'],
    },
    {
        says  => 'unfinished, by its own words',
        files => qr{.},
        finds => sub { every_match($_[1], qr/\b(?:TO[D]O|FIX[M]E|X[X]X|HA[C]K)\b|\bnot implemented\b/) },
        bad   => ['// TO' . 'DO: later', '# FIX' . 'ME'],
        good  => ['mastodons', 'TODOS'],
    },
    {
        says  => 'a path of one machine: take the path as an argument, or a temporary one from the system',
        files => qr{.},
        finds => sub { every_match($_[1], qr{(?<![\w.\$\}~-])/(?:tmp|home|root|work|mnt|Users)/\w}) },
        bad   => ['open("/' . 'tmp/x")', 'cd /' . 'home/me'],
        good  => ['build/tmp/x', '"$TMPDIR/work/x"', 'https://example.org/home/x'],
    },
    {
        says  => 'an arrow against the house: this room may not include that one',
        files => $header,
        finds => sub {
            my ($path, $text) = @_;
            my ($room) = $path =~ m{^include/copipe/(\w+)/};
            my @at;
            while ($text =~ m{^\s*#\s*include\s*[<"]copipe/(?:(\w+)/)?([\w.]+)}mg) {
                my ($at, $other, $file) = ($-[0], $1, $2);
                if (!defined $room) { push @at, $at if $path ne 'include/copipe/copipe.hpp' }
                elsif (!defined $other) { push @at, $at if $file ne 'error.hpp' }
                elsif ($other ne $room) {
                    push @at, $at unless grep { $_ eq $other } @{$may_include{$room} // []};
                }
            }
            return @at;
        },
        bad => [['include/copipe/async/task.hpp', '#include "copipe/device/host.hpp"'],
                ['include/copipe/pipeline/engine.hpp', '#include <copipe/observe/timeline.hpp>'],
                ['include/copipe/schedule/gpipe.hpp', '#include "copipe/copipe.hpp"'],
                ['include/copipe/error.hpp', '#include "copipe/async/task.hpp"']],
        good  => [['include/copipe/pipeline/engine.hpp', '#include "copipe/async/task.hpp"'],
                 ['include/copipe/async/task.hpp', '#include "copipe/error.hpp"'],
                 ['include/copipe/copipe.hpp', '#include "copipe/train/trainer.hpp"']],
    },
    {
        says  => 'a room that the house does not know',
        files => $header,
        finds => sub { $_[0] =~ m{^include/copipe/(\w+)/} && !$may_include{$1} ? (0) : () },
        bad   => [['include/copipe/detail/x.hpp', '']],
        good  => [['include/copipe/async/x.hpp', ''], ['include/copipe/error.hpp', '']],
    },
    {
        says  => 'own headers are included by their full name, copipe/<room>/<thing>.hpp',
        files => $header,
        finds => sub { every_match($_[1], qr{^\s*#\s*include\s*"(?!copipe/)}m) },
        bad   => [['include/copipe/async/x.hpp', '#include "task.hpp"']],
        good  => [['include/copipe/async/x.hpp', "#include \"copipe/async/task.hpp\"\n#include <vector>"]],
    },
    {
        says  => 'a public header defines no macro and opens no namespace for its includer',
        files => $header,
        finds => sub { every_match($_[2], qr{^\s*#\s*define\b|^using namespace\b}m) },
        bad   => [['include/copipe/async/x.hpp', "#define X 1\n"],
                  ['include/copipe/async/x.hpp', "using namespace std;\n"]],
        good  => [['include/copipe/async/x.hpp', "    using namespace std::chrono_literals;\n"]],
    },
    {
        says  => 'a header begins with #pragma once after its head comment',
        files => qr{\.(?:hpp|cuh)$},
        finds => sub { $_[2] =~ /\A\s*#pragma once\b/ ? () : (0) },
        bad   => [['include/copipe/async/x.hpp', "// head\n#include <vector>\n"]],
        good  => [['include/copipe/async/x.hpp', "// head\n#pragma once\n"]],
    },
    {
        says  => 'a file begins with its licence: SPDX-License-Identifier: Apache-2.0',
        files => qr{\.(?:hpp|cpp|cu|cuh|cmake|sh|pl|py)$|CMakeLists\.txt$},
        finds => sub { $_[1] =~ m{\A(?:\#![^\n]*\n)?(?://|\#) SPDX-License-Identifier: Apache-2\.0\n} ? () : (0) },
        bad   => [['tests/x.sh', "#!/bin/sh\necho\n"]],
        good  => [['tests/x.sh', "#!/bin/sh\n# SPDX-License-Identifier: Apache-2.0\necho\n"]],
    },
    {
        says  => 'longer than 120 columns, or indented by a tab',
        files => qr{\.(?:hpp|cpp|cu|cuh|cmake|sh|pl)$|CMakeLists\.txt$},
        finds => sub {
            my @at;
            while ($_[1] =~ /^([^\n]*)$/mg) {
                my ($at, $line) = ($-[0], $1);
                utf8::decode($line);
                push @at, $at if length $line > 120 || $line =~ /^ *\t/;
            }
            return @at;
        },
        bad   => ['x' x 121, "\tint x;"],
        good  => ['x' x 120, "\xc2\xb5" x 120],
    },
    {
        says  => 'ctest cannot run a test whose name holds a semicolon or begins like an option: choose other words',
        files => qr{\.test\.cpp$},
        finds => sub { every_match($_[1], qr/\b(?:TEMPLATE_)?(?:TEST_CASE|SCENARIO)\w*\s*\(\s*"(?:[-~*\[]|[^"\n]*;)/) },
        bad   => [['tests/async/x.test.cpp', 'TEST_CASE("waits; then runs") {}'],
                  ['tests/async/x.test.cpp', 'TEST_CASE("--help helps") {}']],
        good  => [['tests/async/x.test.cpp', 'TEST_CASE("waits, then runs") { f("a;b"); }']],
    },
);

sub findings {
    my ($rule, $path, $text) = @_;
    return () unless $path =~ $rule->{files};
    my %line;
    for my $at ($rule->{finds}->($path, $text, $path =~ $cpp ? code_of($text) : $text)) {
        $line{1 + (substr($text, 0, $at) =~ tr/\n//)} = 1;
    }
    return map { "$path:$_: $rule->{says}" } sort { $a <=> $b } keys %line;
}

# Headers that one who includes the umbrella does not get, though nothing keeps them out.
sub missing_from_umbrella {
    my (%text) = @_;
    my @open = ('include/copipe/copipe.hpp');
    return () unless exists $text{$open[0]};
    my %seen;
    while (my $path = shift @open) {
        next if $seen{$path}++ || !exists $text{$path};
        push @open, "include/$1" while $text{$path} =~ m{^\s*#\s*include\s*[<"](copipe/[\w./]+)[>"]}mg;
    }
    return map { "$_:1: the umbrella copipe/copipe.hpp does not include this header" }
        grep { m{^include/copipe/} && /$header/ && !$seen{$_} && $_ !~ $outside_umbrella } sort keys %text;
}

sub self_test {
    my $wrong = 0;
    for my $rule (@rules) {
        for my $kind (qw(bad good)) {
            for my $sample (@{$rule->{$kind}}) {
                my ($path, $text) = ref $sample ? @$sample : ('tests/room/sample.cpp', $sample);
                my $found = findings($rule, $path, $text) ? 'bad' : 'good';
                next if $found eq $kind;
                print "rule \"$rule->{says}\" takes for $found: $path: $text\n";
                ++$wrong;
            }
        }
    }
    my %house = ('include/copipe/copipe.hpp' => "#include \"copipe/async/a.hpp\"\n",
                 'include/copipe/async/a.hpp' => "#include <copipe/async/b.hpp>\n",
                 'include/copipe/async/b.hpp' => '', 'include/copipe/device/cuda.hpp' => '');
    ++$wrong, print "the umbrella check complains for nothing\n" if missing_from_umbrella(%house);
    ++$wrong, print "the umbrella check misses a header\n"
        unless missing_from_umbrella(%house, 'include/copipe/async/c.hpp' => '') == 1;
    print "$wrong samples judged wrongly\n" if $wrong;
    return $wrong;
}

sub files_below {
    my ($directory) = @_;
    opendir my $handle, $directory or return ();
    my @names = sort grep { !/^\.\.?$/ } readdir $handle;
    closedir $handle;
    return map { -d "$directory/$_" ? files_below("$directory/$_") : "$directory/$_" } @names;
}

my ($root) = $0 =~ m{^(.*)/} ? "$1/.." : '..';
chdir $root or die "cannot enter $root: $!\n";
exit(self_test() ? 1 : 0) if @ARGV && $ARGV[0] eq '--self-test';

my %text;
my @folders = qw(.ci bench cmake docs examples include tests);
for my $path ('CMakeLists.txt', 'CMakePresets.json', 'README.md', map { files_below($_) } @folders) {
    open my $file, '<:raw', $path or next;
    local $/;
    my $text = <$file> // '';
    $text{$path} = $text unless $text =~ /\0/;
}
my @found = map { my $path = $_; map { findings($_, $path, $text{$path}) } @rules } sort keys %text;
push @found, missing_from_umbrella(%text);
print "$_\n" for @found;
printf "%d files read, %d findings\n", scalar keys %text, scalar @found;
exit(@found ? 1 : 0);
