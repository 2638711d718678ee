# amqp_outbox: a transactional outbox for AMQP, as a PostgreSQL extension
#
#   make, make install, make installcheck    as for any PGXS extension
#   make check-source                        order of rooms, exports, lengths

EXTENSION = amqp_outbox
MODULE_big = amqp_outbox
DATA = sql/amqp_outbox--1.0.sql
PGFILEDESC = "amqp_outbox - transactional outbox for AMQP"

# In the order of the rooms: a file uses only files that stand before it.
ROOMS = message trace rate health settings clock horizon measure registry \
	backlog shared catalog leaf secret resolve tls token target option credential server \
	recent flush pile buffer store receipt scan fetch outcome ordering ledger census settlement destination \
	stream properties topology wire login returned assertion transport_amqp091 \
	damage due durable reader pipeline keeper rotation prune scout worker launcher chart examination doctor query \
	pattern permission utility claim admit enqueue template row_json row_option \
	row_plan row_text row_body row_event row_message row row_create declare \
	publish insert confirm allow manage checkup monitor watch amqp_outbox
OBJS = $(patsubst %,src/%.o,$(ROOMS))

REGRESS = $(patsubst sql/%.sql,%,$(filter-out sql/amqp_outbox--%, \
	$(sort $(wildcard sql/*.sql))))
REGRESS_OPTS = --temp-instance=./tmp_check_regress \
	--temp-config=$(srcdir)/test/temp.conf --encoding=UTF8
ISOLATION = $(patsubst $(srcdir)/test/isolation/specs/%.spec,%, \
	$(sort $(wildcard $(srcdir)/test/isolation/specs/*.spec)))
ISOLATION_OPTS = --inputdir=$(srcdir)/test/isolation \
	--temp-instance=./tmp_check_isolation \
	--temp-config=$(srcdir)/test/temp.conf
TAP_TESTS = 1
PROVE_TESTS = $(or $(TESTS),$(sort $(wildcard $(srcdir)/test/t/*.pl)))

TEST_TOOLS = test/helpers/amqp_tool
EXTRA_CLEAN = $(TEST_TOOLS) tmp_check_regress tmp_check_isolation output_iso \
	results regression.diffs regression.out log

# the version stands in the control file only
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" $(or $(srcdir),.)/amqp_outbox.control)
PG_CPPFLAGS = -DOUTBOX_VERSION='"$(EXTVERSION)"'

SHLIB_LINK = -lrabbitmq -lssl -lcrypto -lcares \
	-Wl,--version-script=$(srcdir)/src/exports.map

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# after the inclusion: some versions of PGXS empty it
PROVE_FLAGS += -I $(abspath $(srcdir))/test/perl

$(OBJS): $(wildcard $(srcdir)/src/*.h)
$(shlib): $(srcdir)/src/exports.map

installcheck: $(TEST_TOOLS)
test-tools: $(TEST_TOOLS)
$(TEST_TOOLS): %: %.c
	$(CC) -O2 -Wall -Wextra -o $@ $< -lrabbitmq

check-source: all
	$(srcdir)/scripts/check-source $(ROOMS)

# PGXS lets "make check" succeed without having tested anything.
check: check-needs-install
check-needs-install:
	@echo 'make check cannot test an extension that is not installed.' >&2
	@echo 'Hint: "make install", then "make installcheck"; or scripts/test,' >&2
	@echo 'which does both in a private copy of PostgreSQL.' >&2
	@exit 1

.PHONY: check-needs-install check-source test-tools
