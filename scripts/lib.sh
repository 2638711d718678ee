# shellcheck shell=bash
#
# lib.sh: what demo, test, breaks and bench have in common.  Sourced, never run.
#
# A script that uses it runs twice:
#
#   1. outside, as whoever called it.  go_inside makes sure that the Debian
#      packages are there (root installs what is missing, anybody else is told),
#      copies the source tree into a new temporary directory, runs the script
#      again inside and, whatever happens, ends every process that works in
#      that directory and removes it;
#   2. inside, in the copy and never as root, with a clean environment and
#
#        WORK    the temporary directory
#        SOURCE  the copied tree, the current directory
#
# So nothing has to be undone: what is inside goes with the directory, and the
# system's PostgreSQL and RabbitMQ are only ever read.
#
#	. "$(dirname "$0")/lib.sh"
#	MORE_PACKAGES='openssl'    # besides those that everything needs
#	inside || go_inside "$0" "$@"
#	make_private_tree          # PG_CONFIG and PATH: a private copy
#	make install PG_CONFIG="$PG_CONFIG"
#	start_postgres "$WORK/pg" <<<"shared_preload_libraries = 'amqp_outbox'"
#	start_rabbitmq "$WORK/rabbit"
#	psql -h "$WORK/pg"; amqp_tool ... ; echo "$AMQP_URL"
#	stop_postgres "$WORK/pg"
#
# Environment: PG_VERSION chooses among several installed PostgreSQLs, TMPDIR
# where the directory is made, OUTBOX_PORTS="LOW-HIGH" which ports are used.
#
set -u

MARKER=.amqp_outbox_private		# marks a directory as made here

say()
{
	echo "$*"
}

die()
{
	echo "${0##*/}: $*" >&2
	exit 1
}

inside()
{
	[ -n "${WORK:-}" ] && [ -e "$WORK/$MARKER" ]
}

#
# Outside: packages
#

installed()
{
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# The PostgreSQL to use: the newest one that is installed for development, else
# the newest installed, else the one that the distribution has.
choose_pg_version()
{
	local v

	if [ -z "${PG_VERSION:-}" ]; then
		for v in $(cd /usr/lib/postgresql 2>/dev/null && ls | sort -n); do
			[ -x "/usr/lib/postgresql/$v/bin/postgres" ] || continue
			installed "postgresql-server-dev-$v" ||
				! installed "postgresql-server-dev-${PG_VERSION:-0}" ||
				continue
			PG_VERSION=$v
		done
	fi
	if [ -z "${PG_VERSION:-}" ]; then
		PG_VERSION=$(apt-cache depends postgresql 2>/dev/null |
			sed -n 's/.*Depends: postgresql-\([0-9][0-9]*\)$/\1/p' | head -n 1)
	fi
	[ "${PG_VERSION:-0}" -eq 0 ] || [ "$PG_VERSION" -ge 15 ] ||
		die "PostgreSQL $PG_VERSION is too old, 15 is needed (PG_VERSION chooses)"
}

# missing_packages: prints those of the packages needed that are not installed;
# a script may need MORE_PACKAGES
missing_packages()
{
	local p

	for p in postgresql-common "postgresql-${PG_VERSION:-NN}" \
		"postgresql-server-dev-${PG_VERSION:-NN}" librabbitmq-dev libssl-dev \
		libc-ares-dev gcc libc6-dev make rabbitmq-server \
		${MORE_PACKAGES:-}; do
		installed "$p" || echo "$p"
	done
}

ensure_packages()
{
	local missing

	command -v dpkg-query >/dev/null || die "this needs Debian (no dpkg here)"
	choose_pg_version
	missing=$(missing_packages)
	[ -n "$missing" ] || return 0
	if [ "$(id -u)" = 0 ]; then
		install_packages
	else
		die "these packages are missing, and only root can install them:
	apt-get install --no-install-recommends $(echo $missing)
or run this as root, which installs them without starting any service."
	fi
}

apt_get()
{
	DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 apt-get -q -y \
		-o DPkg::Lock::Timeout=120 "$@" >>"$WORK/apt.log" 2>&1 </dev/null && return
	tail -n 15 "$WORK/apt.log" >&2
	die "apt-get $1 failed; its last lines are above"
}

install_packages()
{
	local broker

	installed rabbitmq-server && broker=old || broker=new
	say "Some packages are missing; apt looks for them."
	apt_get update
	choose_pg_version
	[ -n "${PG_VERSION:-}" ] || die "apt knows no package postgresql"
	say "Installing, without starting a service:" $(missing_packages)
	forbid_services
	# its configuration must be there before a server is installed
	installed postgresql-common ||
		apt_get install --no-install-recommends postgresql-common
	forbid_clusters
	apt_get install --no-install-recommends $(missing_packages)
	allow_clusters
	allow_services
	[ $broker = old ] || [ ! -d /run/systemd/system ] ||
		say "RabbitMQ is new here.  It does not run; to keep it from starting" \
			"at the next boot: systemctl disable rabbitmq-server"
}

# While this file is there, installing a package starts no service.  One that
# an administrator put there is respected.
POLICY=/usr/sbin/policy-rc.d

forbid_services()
{
	[ -e $POLICY ] && return
	policy_is_ours=yes
	printf '#!/bin/sh\nexit 101\n' >$POLICY
	chmod 755 $POLICY
}

allow_services()
{
	[ -z "${policy_is_ours:-}" ] || rm -f $POLICY
	policy_is_ours=
}

# While this is set, installing a server makes no database cluster.
CLUSTER_CONF=/etc/postgresql-common/createcluster.conf

forbid_clusters()
{
	cp -p $CLUSTER_CONF "$WORK/createcluster.conf" || die "no $CLUSTER_CONF"
	cluster_conf_is_saved=yes
	echo 'create_main_cluster = false' >>$CLUSTER_CONF
}

allow_clusters()
{
	[ -z "${cluster_conf_is_saved:-}" ] ||
		cp -p "$WORK/createcluster.conf" $CLUSTER_CONF
	cluster_conf_is_saved=
}

#
# Outside: the directory, the run inside, and the end
#

# processes_inside: ids of all processes whose current directory is in $WORK, or
# that were started there: a daemon leaves its directory, not its environment
processes_inside()
{
	{
		find /proc -mindepth 2 -maxdepth 2 -name cwd \
			\( -lname "$WORK" -o -lname "$WORK/*" \) 2>/dev/null
		grep -lsxzF "WORK=$WORK" /proc/[0-9]*/environ
	} | cut -d / -f 3 | sort -u
}

# End whatever still runs inside: servers in good order first, then the rest.
end_processes()
{
	local signal pids deadline

	for signal in TERM KILL; do
		deadline=$((SECONDS + 10))
		pids=$(processes_inside)
		[ -n "$pids" ] || return 0
		kill -$signal $pids 2>/dev/null
		kill -CONT $pids 2>/dev/null
		while [ -n "$(processes_inside)" ] && [ $SECONDS -lt $deadline ]; do
			sleep 0.05
		done
	done
}

clean_up()
{
	trap '' INT TERM HUP
	trap - EXIT
	allow_clusters
	allow_services
	if [ -n "${WORK:-}" ] && [ -e "$WORK/$MARKER" ] &&
		[ ! -e "$WORK/keep" ]; then
		end_processes
		rm -rf "$WORK"
	fi
}

copy_source()
{
	local from

	from=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 1
	mkdir "$WORK/source" "$WORK/log" "$WORK/tmp" || exit 1
	tar -C "$from" --exclude=./.git --exclude='*.o' --exclude='*.so' \
		--exclude='*.bc' --exclude='./tmp_check*' --exclude='./results' \
		--exclude=./test/helpers/amqp_tool --exclude=./test/helpers/amqp_bare \
		--exclude=./test/bench/relay \
		--exclude='./test/fuzz/fuzz_*' \
		-cf - . | tar -C "$WORK/source" --no-same-owner -xf - ||
		die "cannot copy the source tree"
}

# go_inside SCRIPT ARGS...: all of the first run; does not return
go_inside()
{
	local script=$1 user=() child status

	shift
	[ -e /proc/self/cwd ] || die "this needs /proc to be mounted"
	trap clean_up EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM
	export -n WORK		# the processes out here are not inside
	WORK=$(mktemp -d "${TMPDIR:-/tmp}/amqp_outbox.XXXXXX") || exit 1
	WORK=$(cd "$WORK" && pwd -P)
	touch "$WORK/$MARKER"
	ensure_packages
	copy_source
	# a script may want something else from outside
	! declare -F bring_in >/dev/null || bring_in
	if [ "$(id -u)" = 0 ]; then
		chown -R nobody: "$WORK"
		user=(setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups)
		"${user[@]}" test -w "$WORK/source" ||
			die "\"$WORK\" is out of reach for the user nobody; set TMPDIR"
	fi
	(
		cd "$WORK/source" && exec "${user[@]}" env -i --default-signal \
			PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME="$WORK" \
			USER="${user[0]:+nobody}" TERM="${TERM:-dumb}" LC_ALL=C.UTF-8 \
			TMPDIR="$WORK/tmp" WORK="$WORK" PG_VERSION="$PG_VERSION" CI="${CI:-}" \
			OUTBOX_PORTS="${OUTBOX_PORTS:-}" OUTBOX_FROM="$OLDPWD" \
			bash "$WORK/source/scripts/${script##*/}" "$@"
	) &
	child=$!
	wait $child
	status=$?
	# a script may want to rescue something before the directory goes
	! declare -F bring_out >/dev/null || bring_out
	exit $status
}

# rescue_result: for bring_out: what a run inside put into result, because
# something failed there, outlives the directory
rescue_result()
{
	local to

	[ -n "$(ls "$WORK/result" 2>/dev/null)" ] || return
	to=$(mktemp -d "${TMPDIR:-/tmp}/amqp_outbox_result.XXXXXX") &&
		cp -r --no-preserve=ownership "$WORK"/result/. "$to" &&
		say "Ledgers and logs are in $to; remove it when done."
}

# keep_running: from inside: leave everything there when the script ends
keep_running()
{
	touch "$WORK/keep"
}

# end_kept DIR: end what a run with --keep left
end_kept()
{
	WORK=$1
	inside || die "\"$WORK\" is not a directory that --keep left"
	rm -f "$WORK/keep"
	clean_up
}

#
# Inside: steps with a log
#

# step TEXT COMMAND...: run it quietly; its output is shown if it fails
step()
{
	local text=$1 begin=$SECONDS log

	shift
	log=$WORK/log/$(echo "$text" | tr -c 'A-Za-z0-9\n' _).log
	printf '%-58s ' "$text"
	if "$@" >"$log" 2>&1; then
		say "ok ($((SECONDS - begin)) s)"
	else
		say "FAILED"
		tail -n 40 "$log" >&2
		return 1
	fi
}

# await SECONDS COMMAND...: until the command succeeds, at most so long
await()
{
	local deadline=$((SECONDS + $1))

	shift
	until "$@"; do
		[ $SECONDS -lt $deadline ] || return 1
		sleep 0.1
	done
}

#
# Inside: a private copy of PostgreSQL's tree
#
# PostgreSQL's programs find their libraries and their share directory relative
# to themselves.  So a copy that keeps the layout is complete: "make install"
# with its pg_config goes into the copy, without any rights on the system.
#

make_private_tree()
{
	local part what

	for part in lib/postgresql share/postgresql include/postgresql; do
		mkdir -p "$WORK/usr/$part"
	done
	tar -C /usr/lib/postgresql --exclude=bitcode -cf - "$PG_VERSION" |
		tar -C "$WORK/usr/lib/postgresql" -xf - &&
		cp -rL "/usr/share/postgresql/$PG_VERSION" "$WORK/usr/share/postgresql" &&
		cp -r /usr/include/postgresql "$WORK/usr/include" ||
		die "cannot copy PostgreSQL $PG_VERSION"
	use_private_tree
	for what in bindir sharedir pkglibdir includedir-server pgxs; do
		case $("$PG_CONFIG" --$what) in
			"$WORK"/*) ;;
			*) die "the copy of PostgreSQL in \"$WORK\" does not work: its" \
				"$what is \"$("$PG_CONFIG" --$what)\"" ;;
		esac
	done
}

use_private_tree()
{
	PG_BIN=$WORK/usr/lib/postgresql/$PG_VERSION/bin
	PG_CONFIG=$PG_BIN/pg_config
	PATH=$PG_BIN:$WORK/source/test/helpers:$PATH
	export PG_CONFIG PATH
}

# pg_make ARGS...: make for the private tree
pg_make()
{
	make -s -C "$SOURCE" PG_CONFIG="$PG_CONFIG" with_llvm=no "$@"
}

#
# Inside: sanitizers
#

# COPT of an extension under them
SANITIZE='-fsanitize=address,undefined -fno-wrapv -fno-omit-frame-pointer -O1 -g'

# The server runs under the sanitizers' library by a wrapper, so that it alone
# does.  ASan has to start before anything else: on Debian 12 a library that
# the server loads calls into it from a constructor and would wait for ever.
wrap_postgres()
{
	cat >"$WORK/first.c" <<-END
		#include <stdlib.h>
		__attribute__((constructor)) static void
		start_first(void) { void *volatile p = malloc(1); free(p); }
	END
	gcc -shared -fPIC -O0 -Wl,-z,initfirst -o "$WORK/first.so" \
		"$WORK/first.c" || return 1
	mv "$PG_BIN/postgres" "$PG_BIN/postgres.real"
	cat >"$PG_BIN/postgres" <<-END
		#!/bin/bash
		export LD_PRELOAD=$(readlink -f "$(gcc -print-file-name=libasan.so)"):$WORK/first.so\${LD_PRELOAD:+:\$LD_PRELOAD}
		export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1
		export UBSAN_OPTIONS=print_stacktrace=1
		exec -a "\$0" "$PG_BIN/postgres.real" "\$@"
	END
	chmod 755 "$PG_BIN/postgres"
	postgres -V
}

#
# Inside: servers
#

# start_postgres DIR: a cluster in DIR/data, made if there is none, reachable
# only by the socket in DIR.  Lines of postgresql.conf on standard input.
start_postgres()
{
	local dir=$1

	if [ ! -d "$dir/data" ]; then
		mkdir -p "$dir"
		initdb -D "$dir/data" -U postgres -A trust --no-locale -E UTF8 \
			>"$dir/initdb.log" 2>&1 || { cat "$dir/initdb.log"; return 1; }
		{
			echo "listen_addresses = ''"
			echo "unix_socket_directories = '$dir'"
			cat
		} >>"$dir/data/postgresql.conf"
	fi
	if ! pg_ctl -D "$dir/data" -l "$dir/log" -w -t 120 start >/dev/null; then
		tail -n 20 "$dir/log" >&2
		return 1
	fi
	export PGHOST=$dir PGUSER=postgres PGDATABASE=postgres
}

stop_postgres()
{
	[ ! -f "$1/data/postmaster.pid" ] ||
		pg_ctl -D "$1/data" -m "${2:-fast}" -w -t 120 stop >/dev/null
}

# start_rabbitmq DIR: sets AMQP_URL; lines of rabbitmq.conf on standard input
start_rabbitmq()
{
	"$SOURCE/scripts/rabbitmq" start "$1" || return 1
	AMQP_URL=amqp://guest:guest@127.0.0.1:$(<"$1/port")
	export AMQP_URL
}

stop_rabbitmq()
{
	"$SOURCE/scripts/rabbitmq" stop "$1"
}

if inside; then
	SOURCE=$WORK/source
fi
