#!/usr/bin/env perl
# SPDX-License-Identifier: Apache-2.0
# Keeps the documents true: C++ that they show is C++ that the tests compile, and what they link to exists.
#   docs/snippets/check.pl              checks docs/*.md and prints FILE:LINE: sentence for each finding
#   docs/snippets/check.pl --self-test  proves on small samples that it finds what it should and nothing else
#
# A block of C++ stands below a line `<!-- snippet: NAME -->` and is a part of that file, which lies in docs/snippets/
# or, if the name has a slash, below the root of the checkout. Spaces and line breaks may differ: files get formatted.
use strict;
use warnings;

# The text without what a formatter may change.
sub bare { my ($text) = @_; $text =~ s/\s+//g; return $text }

# For a message: the first line of the block that the file does not have.
sub first_foreign_line {
    my ($block, $file) = @_;
    for (split /\n/, $block) {
        my ($line) = /^\s*(.*?)\s*$/;
        return ", which has no \"$line\"" if index($file, bare($line)) < 0;
    }
    return ', which has its lines in another order';
}

# All that is wrong with a document. `$text_of->(name)`: a file of the checkout, or undef; `$shown` counts quoted ones.
sub findings {
    my ($path, $document, $text_of, $shown) = @_;
    my (@found, $marker);
    my @lines = split /\n/, $document, -1;
    for (my $i = 0; $i < @lines; ++$i) {
        my $begin = $i + 1;
        my $says  = sub { push @found, "$path:$begin: $_[0]" };
        if ($lines[$i] =~ /^<!-- snippet: (\S+) -->$/) {
            $marker = $1;
            next;
        }
        if ($lines[$i] =~ /^\s*```(\S*)/) {
            my ($language, $block) = ($1, '');
            $block .= "$lines[$i]\n" while ++$i < @lines && $lines[$i] !~ /^\s*```\s*$/;
            check_block($language, $block, $marker, $text_of, $shown, $says);
            undef $marker;
            next;
        }
        if (defined $marker && $lines[$i] =~ /\S/) {
            $says->('a block of C++ must follow the line <!-- snippet: ... -->');
            undef $marker;
        }
        (my $prose = $lines[$i]) =~ s/`[^`]*`//g;
        while ($prose =~ /\]\(([^)\s#]*)(?:#([^)\s]*))?\)/g) {
            my ($file, $heading) = ($1, $2);
            next if $file =~ m{^\w+:};
            my $text = $file eq '' ? $document : $text_of->("docs/$file");
            if (!defined $text) { $says->("a link to $file, which is not there") }
            elsif (defined $heading && !grep { $_ eq $heading } anchors($text)) {
                $says->("a link to the heading $heading, which is not there");
            }
        }
    }
    return @found;
}

# The names under which a document's headings can be linked to.
sub anchors {
    my ($text) = @_;
    my @names;
    while ($text =~ /^#+ +(.*?) *$/mg) {
        my $name = lc $1;
        $name =~ s/[^\w\s-]//g;
        $name =~ s/\s/-/g;
        push @names, $name;
    }
    return @names;
}

sub check_block {
    my ($language, $block, $marker, $text_of, $shown, $says) = @_;
    if ($language !~ /^(?:cpp|c\+\+|cc|cxx)$/) {
        $says->('a snippet that is not marked as ```cpp') if defined $marker;
        return;
    }
    return $says->('a block of C++ without <!-- snippet: FILE --> above it') if !defined $marker;
    my $name = $marker =~ m{/} ? $marker : "docs/snippets/$marker";
    my $text = $text_of->($name);
    ++$shown->{$name};
    return $says->('an empty block of C++') if $block !~ /\S/;
    return $says->("there is no file $name") if !defined $text;
    my $file = bare($text);
    $says->("not a part of $name" . first_foreign_line($block, $file)) if index($file, bare($block)) < 0;
}

sub self_test {
    my %files = (
        'docs/snippets/a.cpp' => "int main() {\n    int a = 1;\n\n    return a;\n}\n",
        'src/b.cpp'           => "int b;\n",
        'docs/other.md'       => "# Its `x`, and more\n",
    );
    my $fence = '```';
    my %good = (
        'a part'    => "<!-- snippet: a.cpp -->\n${fence}cpp\nint a = 1;\n\nreturn a;\n$fence\n",
        'formatted' => "<!-- snippet: a.cpp -->\n${fence}cpp\nint a =\n    1;\n$fence\n",
        'far away'  => "<!-- snippet: src/b.cpp -->\n\n${fence}cpp\nint b;\n$fence\n",
        'not C++'   => "${fence}cmake\nint x;\n$fence\n",
        'links'     => "# A b\n[o](other.md#its-x-and-more) [a](#a-b) [w](https://example.org/x.md) `[](int)`\n",
    );
    my %bad = (
        'changed'   => "<!-- snippet: a.cpp -->\n${fence}cpp\nint a = 2;\n$fence\n",
        'left out'  => "<!-- snippet: a.cpp -->\n${fence}cpp\nint main() {\nreturn a;\n$fence\n",
        'reordered' => "<!-- snippet: a.cpp -->\n${fence}cpp\nreturn a;\nint a = 1;\n$fence\n",
        'unmarked'  => "${fence}cpp\nint a = 1;\n$fence\n",
        'no file'   => "<!-- snippet: c.cpp -->\n${fence}cpp\nint c;\n$fence\n",
        'empty'     => "<!-- snippet: a.cpp -->\n${fence}cpp\n$fence\n",
        'no block'  => "<!-- snippet: a.cpp -->\ntext\n",
        'language'  => "<!-- snippet: a.cpp -->\n${fence}\nint a = 1;\n$fence\n",
        'link'      => "[o](gone.md)\n",
        'heading'   => "[o](other.md#gone)\n",
    );
    my $wrong = 0;
    for my $case ([\%good, 0], [\%bad, 1]) {
        my ($samples, $expected) = @$case;
        for my $name (sort keys %$samples) {
            my @found = findings('x.md', $samples->{$name}, sub { $files{$_[0]} }, {});
            next if !!@found == !!$expected;
            print "sample \"$name\" is judged wrongly: @found\n";
            ++$wrong;
        }
    }
    return $wrong;
}

my ($root) = $0 =~ m{^(.*)/} ? "$1/../.." : '../..';
chdir $root or die "cannot enter $root: $!\n";
exit(self_test() ? 1 : 0) if @ARGV && $ARGV[0] eq '--self-test';

sub text_of {
    my ($name) = @_;
    return '' if -d $name;
    open my $file, '<:raw', $name or return undef;
    local $/;
    return <$file> // '';
}

my (@found, %shown);
push @found, findings($_, text_of($_), \&text_of, \%shown) for sort glob 'docs/*.md';
push @found, map { "$_:1: no document shows a part of it" } grep { !$shown{$_} } sort glob 'docs/snippets/*.[ch]pp';
print "$_\n" for @found;
printf "%d files shown, %d findings\n", scalar keys %shown, scalar @found;
exit(@found ? 1 : 0);
