# SPDX-License-Identifier: GPL-2.0-only
# Entry points for people. Each sets up what it needs; `make help` lists them.

# The headers to build for: the running kernel's, else the newest installed. Looked up when it is needed, also in a make
# that inherits an empty name: on a fresh machine there are none before 'setup' has run.
ifeq ($(KDIR),)
KDIR = $(firstword $(wildcard /lib/modules/$(shell uname -r)/build) \
	$(shell ls -d /lib/modules/*/build 2>/dev/null | sort -V | tail -n 1))
endif
CONFIGURATION ?= Debug

SAMPLES := samples/hello tests/Toolchain/Batch
TEST_PROJECTS := tests/Unit tests/Toolchain tests/InVm
DOTNET_BUILD := dotnet msbuild -restore -nologo -v:quiet -p:Configuration=$(CONFIGURATION)
PROGRAM = build/artifacts/bin/$(1)/$(shell echo $(CONFIGURATION) | tr A-Z a-z)/$(2)
TOOL = $(call PROGRAM,sharpkvm,sharpkvm)

# Modules build quietly; V=1 shows every step.
MODULE_BUILD = $(MAKE) --no-print-directory $(if $(V),,-s) KDIR=$(KDIR)

# A build that fails is a test that fails.
BUILD_FAILED = { echo "The build failed: nothing was tested."; echo "0 passed, 1 failed"; exit 1; }
BUILD_FOR_TESTS = $(MAKE) --no-print-directory module samples selftests tests || $(BUILD_FAILED)

# No server of the build may outlive make, and none may be found by it.
export MSBUILDDISABLENODEREUSE := 1
export DOTNET_CLI_TELEMETRY_OPTOUT := 1
export DOTNET_NOLOGO := 1
# Without it the SDK wants the ICU libraries.
export DOTNET_SYSTEM_GLOBALIZATION_INVARIANT := 1
export KDIR

.DEFAULT_GOAL := module
.PHONY: module samples modules-only selftests tool tests run test test-full test-vmx test-ryzen test-debug conformance bench \
	install clean help setup

##@ Build
module: setup ## build kmod/sharpkvm.ko for KDIR (default: the running kernel, else the newest with headers)
	@echo "Building kmod/sharpkvm.ko for $(KDIR)"
	@$(MODULE_BUILD) -C kmod

samples: setup ## build the other modules: samples/hello, and the toolchain's test batch
	@for folder in $(SAMPLES); do $(MODULE_BUILD) -C $$folder || exit 1; done

# All modules for KDIR, without the copies beside their sources.
modules-only:
	@for folder in kmod $(SAMPLES); do $(MODULE_BUILD) -C $$folder module || exit 1; done

selftests: setup ## build the programs that test the module from user space
	@dotnet publish --nologo -v quiet -clp:NoSummary tests/Selftests

tool: setup ## build the developers' command line
	@$(DOTNET_BUILD) tools/sharpkvm

tests: setup ## build the NUnit projects
	@for project in $(TEST_PROJECTS); do $(DOTNET_BUILD) $$project || exit 1; done

##@ Try
run: tool module ## boot a Linux guest on the module, in a throw-away emulated machine
	@$(TOOL) run

test: ## run the tests; ends with "N passed, N failed"
	@$(BUILD_FOR_TESTS)
	@tools/run-tests $(TEST_PROJECTS)

test-full: ## the long ones, too
	@$(BUILD_FOR_TESTS)
	@tools/run-tests --full $(TEST_PROJECTS)

test-vmx: ## all selftests on an emulated Intel processor
	@$(BUILD_FOR_TESTS)
	@tools/run-tests --only Vmx tests/InVm

test-ryzen: ## selftests on an AMD processor that another emulator plays
	@$(BUILD_FOR_TESTS)
	@tools/run-tests --only Ryzen tests/InVm

conformance: module tool ## run Linux's own KVM selftests on the module and on stock KVM, and compare
	@tools/setup --conformance
	@$(TOOL) conformance

# The first time it builds the kernel: minutes to an hour.
test-debug: ## the in-VM tests on a kernel that checks itself: memory, locks, objects, leaks
	@tools/setup --debug-kernel || $(BUILD_FAILED)
	@{ $(MAKE) --no-print-directory tool selftests tests && KDIR=$$($(TOOL) debug-kernel) && \
		$(MAKE) --no-print-directory modules-only KDIR=$$KDIR; } || $(BUILD_FAILED)
	@LAB_KERNEL=debug tools/run-tests tests/InVm

bench: module ## compare with stock KVM: instructions per exit (LANE=vmx: Intel; svm-shadow, vmx-shadow: a part of it)
	@dotnet publish --nologo -v quiet -clp:NoSummary bench/Program
	@$(DOTNET_BUILD) bench/Driver
	@build/artifacts/bin/Bench/$(notdir $(patsubst %/,%,$(dir $(TOOL))))/bench \
		$(if $(filter vmx%,$(LANE)),--vmx) $(if $(filter %-shadow,$(LANE)),--shadow)

##@ Other
install: ## install the module for the running kernel (as root)
	@test -e kmod/sharpkvm.ko || { echo "kmod/sharpkvm.ko is missing: run 'make' first" >&2; exit 1; }
	$(MAKE) -C $(KDIR) M="$$($(MAKE) --no-print-directory -s -C kmod KDIR=$(KDIR) stage)" modules_install
	depmod -a

clean: ## remove everything that was built or downloaded
	@for folder in kmod $(SAMPLES); do $(MODULE_BUILD) -C $$folder clean; done
	rm -rf build

setup: ## install what is missing (Debian 12 packages)
	@tools/setup

help: ## this list
	@awk -F ':.*## ' '/^##@ / { print "\n" substr($$0, 5) } /^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' \
		$(MAKEFILE_LIST)
