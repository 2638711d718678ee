# AmqpOutboxReference.pm: docs/reference.md as data, and the examples of other
# documents.
#
# The reference is written for people; these few rules let a test read it:
#
#	### `name(...)`		a heading whose first words are code: what follows, up to
#						the next heading of this kind, is about this name
#	| kind | type |...	a table; its kind is the head of its first column.  Each
#						row is about the names in its first cell that are code,
#						the cells with the heads "type", "default" and "range"
#						say something that can be compared
#	```sql				an example: all of them are executed, in their order, in
#						one session of psql; a database "plant" exists
#	```text				right after one: what psql shows, errors included.  White
#						space and rulers do not count, and … stands for anything
#						within a line.  An example without it must have no error

package AmqpOutboxReference;

use strict;
use warnings FATAL => 'all';

use Exporter 'import';

our @EXPORT = qw(read_reference code_words same_output);

# What is marked as code in a piece of Markdown.
sub code_words
{
	my $text = shift;

	return $text =~ /`([^`]*)`/g;
}

# The cells of a line of a table.
sub _cells
{
	my $line = shift;

	$line =~ s/^\|\s*|\s*\|\s*$//g;
	return map { s/\\\|/|/gr } split(/\s*(?<!\\)\|\s*/, $line, -1);
}

# Reads the file.  Returns a hash: rows, a list of {kind, about, name, line,
# and the cells by their heads}; about, a hash of the text below each heading by
# its name; examples, a list of {line, sql, expected}; lines.
sub read_reference
{
	my $file = shift;
	my %reference = (rows => [], about => {}, examples => []);
	my ($about, $heads, $block, $kind) = ('', undef, undef, '');

	open(my $fh, '<', $file) or die "cannot read $file: $!";
	chomp(my @lines = <$fh>);
	close($fh);
	foreach my $n (1 .. @lines)
	{
		my $line = $lines[ $n - 1 ];

		if (defined $block)
		{
			if ($line eq '```')
			{
				push @{ $reference{examples} }, { line => $n, sql => $block }
				  if $kind eq 'sql';
				$reference{examples}[-1]{expected} = $block if $kind eq 'text';
				undef $block;
			}
			else
			{
				$block .= "$line\n";
			}
			next;
		}
		if ($line =~ /^```(\w*)$/)
		{
			($kind, $block) = ($1, '');
			next;
		}
		if ($line =~ /^#+ /)
		{
			$about = $line =~ /^#+ `([^`(]+)/ ? $1 : '';
			$reference{about}{$about} //= '';
		}
		$reference{about}{$about} .= "$line\n";
		if ($line !~ /^\|/)
		{
			undef $heads;
		}
		elsif (!defined $heads)
		{
			$heads = [ _cells($line) ];
		}
		elsif ($line !~ /^\|[ |:-]*$/)
		{
			my @cells = _cells($line);
			my %row = map { ($heads->[$_] // '') => $cells[$_] } 0 .. $#cells;

			push @{ $reference{rows} },
			  { %row, kind => $heads->[0], about => $about, name => $_,
				line => $n }
			  foreach code_words($cells[0]);
		}
	}
	$reference{lines} = \@lines;
	return \%reference;
}

# Compare what psql shows with what the reference says it shows.
sub _plain
{
	my $text = shift;

	$text =~ s/^[-+ ]*\n//gm;
	$text =~ s/-{2,}\[/[/g;
	$text =~ s/[ \t]+/ /g;
	$text =~ s/^ | $//gm;
	return $text;
}

sub same_output
{
	my ($actual, $expected) = @_;
	my $pattern = quotemeta(_plain($expected));

	# the ellipsis in UTF-8, byte by byte
	$pattern =~ s/\\\xe2\\\x80\\\xa6/.*/g;
	return _plain($actual) =~ /^$pattern$/;
}

1;
