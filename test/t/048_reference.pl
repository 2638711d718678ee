# docs/reference.md tells the truth: whatever the extension has is in it, with
# its type and default, nothing else is, and its examples do what they show; so
# do those of docs/operations.md and docs/monitoring.md, which come after them.
#
# The reference is read as AmqpOutboxReference.pm says.  To document something
# new, write Markdown: a row in the table of its kind, or a heading with a
# table.  If an example does not do what it shows, the test leaves a copy of the
# document with what it does do in tmp_check.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxReference;
use AmqpOutboxTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $root = $AmqpOutboxTest::ROOT;
my %document = map { $_ => read_reference("$root/docs/$_.md") }
  qw(reference operations monitoring);
my $reference = $document{reference};
my $broker = AmqpOutboxTest::Broker->new('reference');
my $node = new_node('main', conf => "timezone = 'UTC'");

$node->safe_psql('postgres', 'CREATE DATABASE facts');
$node->safe_psql('facts', <<'END');
CREATE EXTENSION amqp_outbox;
CREATE VIEW object AS
	SELECT d.classid, d.objid FROM pg_depend d
		JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass
			AND d.refobjid = e.oid AND d.deptype = 'e'
		WHERE e.extname = 'amqp_outbox';
CREATE VIEW function AS
	SELECT p.*, CASE WHEN n.nspname = 'amqp_outbox' THEN 'amqp_outbox.' ELSE '' END
		|| p.proname AS name
		FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
			JOIN object o ON o.classid = 'pg_proc'::regclass AND o.objid = p.oid;
CREATE VIEW argument AS
	SELECT f.name, a.name AS argument, a.n, a.mode, format_type(a.type, NULL) AS type,
		coalesce(pg_get_function_arg_default(f.oid, a.n::int), '') AS default_value
		FROM function f, unnest(f.proargnames, coalesce(f.proallargtypes, f.proargtypes::oid[]),
			coalesce(f.proargmodes, array_fill('i'::"char", ARRAY[f.pronargs])))
			WITH ORDINALITY AS a (name, type, mode, n);
CREATE VIEW relation AS
	SELECT c.oid, 'amqp_outbox.' || c.relname AS name, c.relkind FROM pg_class c
		JOIN object o ON o.classid = 'pg_class'::regclass AND o.objid = c.oid
		WHERE c.relkind IN ('r', 'v') AND NOT EXISTS
			(SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid);
END

#
# Comparing
#

# What a query returns, as lists.
sub rows
{
	my $query = shift;

	return map { [ split(/\x1f/, $_, -1) ] }
	  split(/\n/, $node->safe_psql('facts', $query,
			extra_params => [ '-F', "\x1f" ]));
}

# Rows of the reference's tables of one kind, perhaps below one heading only.
sub documented
{
	my ($kind, $about) = @_;

	return grep {
		$_->{kind} eq $kind && (!defined $about || $_->{about} eq $about)
	} @{ $reference->{rows} };
}

# Those of the tables of one kind in another document.
sub documented_in
{
	my ($document, $kind) = @_;

	return grep { $_->{kind} eq $kind } @{ $document{$document}{rows} };
}

# The same names here and there; both are lists.
sub same_names
{
	my ($what, $real, $documented) = @_;
	my %real = map { $_ => 1 } @$real;
	my %documented = map { $_ => 1 } @$documented;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(join(', ', grep { !$documented{$_} } sort keys %real),
		'', "$what: none is missing");
	is(join(', ', grep { !$real{$_} } sort keys %documented),
		'', "$what: all of them exist");
	return;
}

# Problems, one for each line, that should not be there.
sub none
{
	my ($what, @problems) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(join("\n", @problems), '', $what);
	return;
}

# SQL's name of a type that the reference may call by a shorter one.
my %type_name;

sub type_name
{
	my $type = shift;

	$type_name{$type} //= $node->safe_psql('facts',
		"SELECT coalesce(format_type(to_regtype(\$\$$type\$\$), NULL), 'no type')");
	return $type_name{$type};
}

# A number with a unit, in the unit that is asked for.
sub in_unit
{
	my ($text, $unit) = @_;
	my %factor = (ms => 1, s => 1e3, min => 6e4, h => 36e5, d => 864e5,
		B => 1, kB => 1 << 10, MB => 1 << 20, GB => 1 << 30);

	return $text if ($text // '') !~ /^(-?\d+) ?(ms|s|min|h|d|B|kB|MB|GB)$/ || !$unit;
	return $1 * $factor{$2} / $factor{$unit};
}

#
# Functions
#

my @functions = map { $_->[0] } rows('SELECT DISTINCT name FROM function');
my @relations = map { $_->[0] } rows('SELECT name FROM relation');
my @types = map { $_->[0] } rows(
	"SELECT 'amqp_outbox.' || typname FROM pg_type JOIN object ON objid = oid
		AND classid = 'pg_type'::regclass WHERE typtype = 'e'");
my %about = %{ $reference->{about} };
my @sections = grep { $about{$_} ne '' && !/^x-|\.\w+\./ } keys %about;
my %relation = map { $_ => 1 } @relations;
my %type = map { $_ => 1 } @types;

same_names(
	'functions',
	\@functions,
	[ (grep { $_ ne '' && !$relation{$_} && !$type{$_} } @sections),
		map { $_->{name} =~ s/\(.*//r } documented('internal function') ]);

foreach my $function (@functions)
{
	next unless exists $about{$function};
	my (%real, %column);

	foreach (rows("SELECT argument, type, default_value, mode FROM argument
		WHERE name = '$function'"))
	{
		my ($argument, $type, $default, $mode) = @$_;

		if ($mode =~ /[ot]/)
		{
			$column{$argument}{types}{$type} = 1;
			next;
		}
		$real{$argument}{types}{$type} = 1;
		$real{$argument}{default} = $default;
	}
	compare($function, 'argument', \%real);
	compare($function, 'column', \%column);
	next if %column;

	my %returns = map { $_->[0] => 1 } rows(
		"SELECT pg_get_function_result(oid) FROM function WHERE name = '$function'");
	like($about{$function}, qr/Returns\s+`@{[ keys %returns ]}`/,
		"$function: result");
}

# Names, types and defaults of arguments or columns.
sub compare
{
	my ($about, $kind, $real) = @_;
	my @documented = documented($kind, $about);
	my @problems;

	same_names("$about, ${kind}s", [ keys %$real ],
		[ map { $_->{name} } @documented ]) if %$real || @documented;
	foreach my $row (grep { $real->{ $_->{name} } } @documented)
	{
		my ($name, $is) = ($row->{name}, $real->{ $row->{name} });
		my $types = join(', ', sort keys %{ $is->{types} });
		my $said = join(', ',
			sort map { type_name($_) } code_words($row->{type} // ''));

		push @problems, "$name is of type $types" if $types ne $said;
		next unless defined $is->{default};
		my ($default) = code_words($row->{default} // '');

		if (!defined $default || $is->{default} eq '')
		{
			push @problems, "$name: default '$is->{default}'"
			  if ($default // '') ne $is->{default};
			next;
		}
		my ($type) = keys %{ $is->{types} };
		push @problems, "$name: default is $is->{default}"
		  if $node->safe_psql('facts',
			"SELECT ($is->{default})::text IS NOT DISTINCT FROM (($default)::$type)::text") ne 't';
	}
	none("$about: types and defaults of ${kind}s", @problems);
	return;
}

#
# Tables, views, words
#

same_names(
	'tables and views',
	\@relations,
	[ (grep { $relation{$_} } @sections), map { $_->{name} } documented('internal table') ]);

foreach my $relation (@relations)
{
	next unless exists $about{$relation};
	my %real = map { $_->[0] => { types => { $_->[1] => 1 } } } rows(
		"SELECT attname, format_type(atttypid, NULL) FROM pg_attribute
			WHERE attrelid = '$relation'::regclass AND attnum > 0");

	compare($relation, 'column', \%real);
}

foreach my $type (@types)
{
	same_names($type, [ map { $_->[0] } rows("SELECT unnest(enum_range(NULL::$type))") ],
		[ map { $_->{name} } documented('value', $type) ]);
}

# Words that a column of text may have: literals of the view.
my $registry = slurp_file("$root/src/registry.c");
my ($state_names) = $registry =~ /^outbox_worker_state_name\((.*?)^\}/ms;
my %words = (
	'amqp_outbox.message.status' =>
	  [ literals('amqp_outbox.message'), literals('amqp_outbox.stored_message') ],
	'amqp_outbox.health.rule' =>
	  [ map { $_->[0] } rows('SELECT rule FROM amqp_outbox.health_threshold()') ],
	'amqp_outbox.topology.state' => [ literals('amqp_outbox.topology') ],
	'amqp_outbox.server_status.state' =>
	  [ 'not started', $state_names =~ /case OUTBOX_\w+:\s*return "([^"]+)"/g ],
);

sub literals
{
	my $view = shift;
	my ($definition) = $node->safe_psql('facts', "SELECT pg_get_viewdef('$view')");

	return grep { /^[a-z ]+$/ } $definition =~ /'((?:[^']|'')*)'::text/g;
}

same_names($_, $words{$_}, [ map { $_->{name} } documented('value', $_) ])
  foreach sort keys %words;

# The same in other documents.
my ($check_names) = slurp_file("$root/src/chart.c") =~ /^outbox_check_name\((.*?)^\}/ms;
same_names('checks of doctor()',
	[ $check_names =~ /= "(\w+)"/g ],
	[ map { $_->{name} } documented_in('operations', 'check') ]);
same_names('rules of health', $words{'amqp_outbox.health.rule'},
	[ map { $_->{name} } documented_in('monitoring', 'rule') ]);

#
# Settings
#

my %contexts = (user => 'session', superuser => 'superuser', sighup => 'reload',
	postmaster => 'restart');
my %settings = map { $_->[0] => $_ } rows(
	"SELECT name, vartype, coalesce(unit, ''), boot_val, min_val, max_val, context,
		array_to_string(enumvals, ', ')
		FROM pg_settings WHERE name LIKE 'amqp\\_outbox.%'");
my @problems;

same_names('settings', [ keys %settings ], [ map { $_->{name} } documented('setting') ]);
foreach my $row (grep { $settings{ $_->{name} } } documented('setting'))
{
	my ($name, $type, $unit, $boot, $min, $max, $context, $values) =
	  @{ $settings{ $row->{name} } };
	my ($default) = map { in_unit($_, $unit) } code_words($row->{default});
	my @range = map { in_unit($_, $unit) } code_words($row->{range} // '');

	$type =~ s/bool/boolean/;
	$type =~ s/string/text/;
	$type .= ", $unit" if $unit ne '';
	push @problems, "$name is of type $type" if $row->{type} ne $type;
	push @problems, "$name has the default $boot" if ($default // '') ne $boot;
	push @problems, "$name is set by $contexts{$context}"
	  if $row->{'set by'} ne $contexts{$context};
	push @problems, "$name is from $min to $max"
	  if $type =~ /^(integer|real)/ && "@range" ne "$min $max";
	push @problems, "$name is one of $values"
	  if $type eq 'enum' && join(', ', @range) ne $values;
}
none('types, defaults, ranges and contexts of settings', @problems);

# Thresholds, where the rules are explained.
@problems = ();
foreach my $row (documented_in('monitoring', 'rule'))
{
	foreach my $level ('warning', 'critical')
	{
		my $name = "amqp_outbox.health_$row->{name}_$level";
		my (undef, undef, $unit, $boot) = @{ $settings{$name} // next };

		push @problems, "$name has the default $boot"
		  if in_unit($row->{$level} =~ s/^never$/0/r, $unit) ne $boot;
	}
}
none('thresholds of the rules of health', @problems);

#
# Options
#

# The hint of the error of a statement, quotes taken off.
sub hint
{
	my $sql = shift;
	my ($ret, $stdout, $stderr) = $node->psql('facts', $sql);

	return $stderr =~ /^HINT:  (.*)/m ? $1 =~ s/"//gr : $stderr;
}

sub valid_options
{
	return split(/, /, hint(shift) =~ s/^.*: |\.$//gr);
}

# The type and range that the hint to a wrong value gives away.
sub option_type
{
	my $hint = shift;

	return ('integer, s', "$1 $2")
	  if $hint =~ /^Give a time from (\d+) to (\d+) seconds/;
	return ('integer, B', "$1 $2") if $hint =~ /^Give a number of bytes from (\d+) to (\d+)/;
	return ('integer', "$1 $2") if $hint =~ /(?:number from|go from) (\d+) to (\d+)/;
	return ('boolean', '') if $hint =~ /^Give true or false/;
	return ('text', $1 =~ s/ or |, / /gr)
	  if $hint =~ /^Give ([\w.]+(?:, [\w.]+)* or [\w.]+)\.$/;
	return ('text', '');
}

# The defaults as src/option.c sets them; what it does not name is 0 or false.
my $source = slurp_file("$root/src/option.c") . slurp_file("$root/src/option.h");
my ($set_defaults) = $source =~ /^outbox_option_set_defaults\((.*?)^\}/ms;
my %constant = $source =~ /^#define\s+(OUTBOX_\w+)\s+\(?([^\n\/]*?)\)?\s*(?:\/\*.*)?$/gm;
my %set = $set_defaults =~ /server->(\w+) = ([^;]+);/g;

# Those that are not in the function.
$set{backlog_action} = lc $1
  if slurp_file("$root/src/backlog.h") =~ /^typedef enum OutboxBacklogAction\n\{\n\s*OUTBOX_BACKLOG_(\w+)/m;
$set{host} = $1 if $source =~ /hosts \? hosts : ("[^"]+")/;
$set{port} = 'OUTBOX_PORT';

sub option_default
{
	my ($name, $type) = @_;
	my $value = $set{$name};

	return $type eq 'boolean' ? 'false' : $type =~ /integer/ ? '0' : ''
	  if !defined $value;
	$value = $1 if $value =~ /"(.*)"/;
	$value = $constant{$value} // $value;
	if ($value =~ /^[\d* ]+$/)
	{
		my $product = 1;

		$product *= $_ foreach split(/ \* /, $value);
		$value = $product;
	}
	return $value;
}

sub check_options
{
	my ($kind, $refuse) = @_;
	my @valid = valid_options($refuse->('nonsense', 'x'));
	my %valid = map { $_ => 1 } @valid;
	my @wrong;

	same_names("${kind}s", \@valid, [ map { $_->{name} } documented($kind) ]);
	foreach my $row (grep { $valid{ $_->{name} } } documented($kind))
	{
		my $name = $row->{name};
		my ($type, $range) = option_type(hint($refuse->($name, '~')));
		my ($unit) = $type =~ /, (\w+)/;
		my ($default) = map { in_unit($_, $unit) } code_words($row->{default});
		my $said = join(' ', map { in_unit($_, $unit) } code_words($row->{range} // ''));
		my $real = option_default($name, $type);

		push @wrong, "$name is of type $type" if $row->{type} ne $type;
		push @wrong, "$name takes $range" if $said ne $range;

		# of words it is the first; triggers' options have theirs elsewhere
		$real = (split(/ /, $range))[0] if $type eq 'text' && $range ne '';
		$real = $default if $kind eq 'trigger option' && $range eq '';
		push @wrong, "$name has the default '$real'"
		  if ($default // '') ne ($real // '')
		  && !($kind eq 'trigger option' && $type =~ /integer/);
	}
	none("types, ranges and defaults of ${kind}s", @wrong);
	return;
}

check_options('server option', sub {
	return "BEGIN; CREATE SERVER x FOREIGN DATA WRAPPER amqp_outbox
		OPTIONS ($_[0] '$_[1]'); ROLLBACK";
});
$node->safe_psql('facts', "CREATE SERVER f FOREIGN DATA WRAPPER amqp_outbox");
check_options('user mapping option', sub {
	return "BEGIN; CREATE USER MAPPING FOR CURRENT_USER SERVER f
		OPTIONS ($_[0] '$_[1]'); ROLLBACK";
});
$node->safe_psql('facts', "CREATE TABLE t (id int)");
check_options('trigger option', sub {
	return "BEGIN; CREATE TRIGGER x AFTER INSERT ON t FOR EACH ROW
		EXECUTE FUNCTION amqp_publish_row('e', 'k', '$_[0]=$_[1]');
		INSERT INTO t VALUES (1); ROLLBACK";
});

#
# Headers and errors
#

my $c = join("\n", map { slurp_file($_) } glob("$root/src/*.[ch]"));
my $script = slurp_file(glob("$root/sql/amqp_outbox--*.sql"));

# a header that we set is a constant OUTBOX_..._HEADER, but for the trace context
# and CloudEvents, where it is made of a prefix and a name
like($c, qr/"cloudEvents_"/, 'prefix of CloudEvents');
same_names('headers',
	[ $c =~ /^#define\s+OUTBOX_(?:\w+_HEADER|TRACEPARENT|TRACESTATE)\s+"([^"]+)"/gm ],
	[ grep { !/^cloudEvents_/ } map { $_->{name} } documented('header') ]);
same_names('attributes of CloudEvents',
	[ $c =~ /outbox_row_push_header\(&state, "(\w+)"/g ],
	[ map { s/^cloudEvents_//r } grep { /^cloudEvents_/ } map { $_->{name} } documented('header') ]);

# what ereport() and RAISE can throw, by its SQLSTATE
my ($share) = run_command([ 'pg_config', '--sharedir' ]);
my %sqlstate;
foreach (split(/\n/, slurp_file("$share/errcodes.txt")))
{
	next unless /^(\w{5})\s+E\s+(ERRCODE_\w+)(?:\s+(\w+))?/;
	$sqlstate{$2} = $1;
	$sqlstate{$3} //= $1 if defined $3;
}
my %raised;
$raised{ $sqlstate{$1} // $1 } = 1
  while $c =~ /ereport\(ERROR,\s*\(errcode\((ERRCODE_\w+)\)/g;
$raised{ $sqlstate{$1} // $1 } = 1 while $script =~ /RAISE (\w+) USING/g;
my %known = map { $_ => 1 } values %sqlstate;
my @states = map { $_->{name} } documented('SQLSTATE');
my %told = map { $_ => 1 } @states;

none('all errors are documented', grep { !$told{$_} } sort keys %raised);
none('all errors exist', grep { !$known{$_} } @states);

#
# \df+, \d+ and the like
#

none('every object has a comment', map { $_->[0] } rows(
	"SELECT pg_describe_object(classid, objid, 0) FROM object
		WHERE obj_description(objid, classid::regclass::name) IS NULL
		AND classid NOT IN ('pg_type'::regclass, 'pg_rewrite'::regclass)
		ORDER BY 1"));
none('every type of its own has a comment', map { $_->[0] } rows(
	"SELECT typname FROM pg_type JOIN object ON objid = oid AND classid = 'pg_type'::regclass
		WHERE typtype IN ('e', 'd') AND obj_description(oid, 'pg_type') IS NULL"));
none('every column of a view has a comment', map { $_->[0] } rows(
	"SELECT r.name || '.' || a.attname FROM relation r
		JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0
		WHERE r.relkind = 'v' AND col_description(r.oid, a.attnum) IS NULL ORDER BY 1"));
my $hidden = join(', ', map { "'$_->{name}'" }
	  grep { $_->{''} =~ /not for `pg_monitor`/ }
	  documented('column', 'amqp_outbox.stored_message'));
none('pg_monitor sees of stored_message what it is said to see', map { $_->[0] } rows(
	"SELECT attname || ': ' || granted FROM (SELECT attname,
			has_column_privilege('pg_monitor', attrelid, attnum, 'SELECT') AS granted
			FROM pg_attribute WHERE attrelid = 'amqp_outbox.stored_message'::regclass
			AND attnum > 0) a
		WHERE granted = (attname IN ($hidden)) ORDER BY 1"));
none('every argument has a name', map { $_->[0] } rows(
	"SELECT oid::regprocedure FROM function WHERE pronargs > 0
		AND (proargnames IS NULL OR '' = ANY (proargnames))"));

# What only looks at its arguments and at settings may say so.
none('what writes is volatile', map { $_->[0] } rows(
	"SELECT oid::regprocedure FROM function
		WHERE provolatile <> 'v' AND proname <> 'health_threshold'"));
none('what is parallel safe does not write', map { $_->[0] } rows(
	"SELECT oid::regprocedure FROM function
		WHERE proparallel = 's' AND proname NOT IN ('validator', 'health_threshold')"));
none('functions of SQL pin their search_path', map { $_->[0] } rows(
	"SELECT f.oid::regprocedure FROM function f JOIN pg_language l ON l.oid = f.prolang
		WHERE l.lanname <> 'c' AND NOT EXISTS
			(SELECT FROM unnest(f.proconfig) c WHERE c LIKE 'search_path=%')"));

#
# The examples
#

# What an engineer who reads about it would like to see in use; of the many
# thresholds some will do.
my $examples = join('', map { $_->{sql} } @{ $reference->{examples} });
my @used = (
	(grep { exists $about{$_} } @functions, @relations),
	(grep { !/_(?:warning|critical)$/ } keys %settings),
	map { $_->{name} } documented('server option'),
	documented('user mapping option'), documented('trigger option'));
none('all of it is in an example', grep { $examples !~ /\b\Q$_\E\b/ } @used);

# The broker of the examples is on this machine, with a virtual host and a user.
my $plant = $broker->new_vhost('plant');
$broker->ctl('add_user', 'mes', 'secret');
$broker->ctl('set_permissions', '-p', 'plant', 'mes', '.*', '.*', '.*');

$node->safe_psql('postgres', 'CREATE DATABASE plant');

my $mark = 'end of example';
my @examples;
foreach my $document (qw(reference operations monitoring))
{
	push @examples, map { { %$_, document => $document } }
	  @{ $document{$document}{examples} };
}
my $input = "\\set VERBOSITY verbose\n\\pset linestyle ascii\n"
  . "SET client_min_messages = warning;\n\\echo $mark\n";
$input .= "$_->{sql}\n;\n\\echo $mark\n" foreach @examples;
my $address = 'amqp://127.0.0.1:' . $broker->port;
$input =~ s{amqp://localhost\b}{$address}g;

my $output;
my @psql = ($node->installed_command('psql'), '-X', '-q', '-d', $node->connstr('plant'));
IPC::Run::run(\@psql, '<', \$input, '>&', \$output);
$output =~ s/^psql:\S+ //gm;
$output =~ s/^LOCATION:.*\n//gm;
$output =~ s{\Q$address\E}{amqp://localhost}g;
my (undef, @outputs) = split(/^$mark\n/m, $output, -1);
my %wrong;

foreach my $example (@examples)
{
	my $actual = $example->{actual} = shift @outputs // 'psql has ended';
	my $name = "$example->{document}: the example that ends at line $example->{line}";
	my $right;

	if (defined $example->{expected})
	{
		ok($right = same_output($actual, $example->{expected}), $name)
		  or diag("says:\n$example->{expected}does:\n$actual");
	}
	else
	{
		ok($right = $actual !~ /ERROR|FATAL|connection to server/, $name)
		  or diag($actual);
	}
	push @{ $wrong{ $example->{document} } }, $example unless $right;
}
write_results($_, @{ $wrong{$_} }) foreach sort keys %wrong;

# A document with what its examples really show.
sub write_results
{
	my ($document, @wrong) = @_;
	my @lines = @{ $document{$document}{lines} };

	foreach my $example (reverse @wrong)
	{
		my $at = $example->{line};
		my $old = 0;

		if (defined $example->{expected})
		{
			my $blank = $lines[$at] eq '' ? 1 : 0;

			$at += $blank;
			$old = 2 + ($example->{expected} =~ tr/\n//);
		}
		splice(@lines, $at, $old, '```text',
			(map { s/\s+$//r } split(/\n/, $example->{actual} =~ s/\n+$//r)), '```');
	}
	my $results = "$PostgreSQL::Test::Utils::tmp_check/$document.md";
	open(my $fh, '>', $results) or die "cannot write $results: $!";
	print $fh "$_\n" foreach @lines;
	close($fh);
	diag("see $results");
	return;
}

#
# Found
#

my $readme = slurp_file("$root/README.md");
none('README.md links to all that is in docs',
	grep { index($readme, "($_)") < 0 }
	  map { "docs/" . (split(/\//, $_))[-1] } glob("$root/docs/*.md"));

finish_node($node);
done_testing();
