# corpus.pl: make files for libFuzzer of the seeds in a text file.
#
#	perl corpus.pl seeds/NAME.txt DIRECTORY
#
# A line is a seed, with \n and \xNN for what has no place in a line; those that
# begin with # are comments.

use strict;
use warnings FATAL => 'all';

my ($file, $directory) = @ARGV;
my $n = 0;

open(my $in, '<:raw', $file) or die "cannot open $file: $!";
while (my $line = <$in>)
{
	chomp $line;
	next if $line =~ /^#/;
	$line =~ s/\\(n|x([0-9a-f]{2}))/defined $2 ? chr(hex($2)) : "\n"/ge;
	open(my $out, '>:raw', sprintf('%s/seed%02d', $directory, $n++))
	  or die "cannot write into $directory: $!";
	print $out $line;
	close($out);
}
