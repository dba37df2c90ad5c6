# SPDX-License-Identifier: GPL-2.0-only
#
# Builds a kernel module with a C# core. A makefile sets three names and includes this:
#
#   NAME    := hello                     # hello.ko, made of the objects that its Kbuild lists
#   PROJECT := Hello.csproj              # imports src/CoreLib/Kernel.CSharp.props
#   SOURCES := Kbuild hello.c            # Kbuild, C and assembler sources and headers; gathered in one flat folder
#   include ../../src/CoreLib/Kernel.CSharp.mk
#
# Kbuild lists, besides the module's own objects, core.o (the C# core), door.o and trap.o (src/CoreLib/Native), and
# those of its other objects that the core's classes want (their comments say so). C sources may include core.h (what the core marks with [KernelHeader]).
# Optional: IMPORTS, names of the kernel's exported functions that the core calls without the shim; KDIR, the kernel's
# build folder (default: the running kernel's headers, else the newest installed); BUILD, where all output goes; FRAMES,
# the frame limit in bytes; OPTIMIZE, the compiler's option for the trade of size against speed.
# Targets: all (the module, copied beside the makefile), module (without the copy), core (the assembler source), stage
# (prints the folder Kbuild works in), clean.

CS_LIB := $(dir $(lastword $(MAKEFILE_LIST)))
CS_ROOT := $(abspath $(CS_LIB)/../..)
BUILD ?= $(CS_ROOT)/build/modules/$(NAME)
FRAMES ?= 2048
OPTIMIZE ?= -O

ifndef KDIR
KDIR := /lib/modules/$(shell uname -r)/build
ifeq ($(wildcard $(KDIR)/Makefile),)
KDIR := $(lastword $(shell ls -d /lib/modules/*/build 2>/dev/null | sort -V))
endif
endif
CS_KERNEL := $(notdir $(patsubst %/build,%,$(KDIR)))
CS_STAGE := $(BUILD)/$(CS_KERNEL)
CS_IL := $(BUILD)/il

CS_ASSEMBLY := $(basename $(notdir $(PROJECT)))
CS_DLL := $(CS_ROOT)/build/artifacts/bin/$(CS_ASSEMBLY)/release/$(CS_ASSEMBLY).dll
CS_ILPATCH := $(CS_ROOT)/build/artifacts/bin/ilpatch/release/ilpatch.dll
CS_DOTNET := env DOTNET_CLI_TELEMETRY_OPTOUT=1 DOTNET_NOLOGO=1 MSBUILDDISABLENODEREUSE=1 dotnet
# One at a time: two makes may want the same tool. The compiler server, which stays, does not get the lock.
CS_BUILD := flock -o $(CS_ROOT)/build $(CS_DOTNET) build -c release -v q --nologo
CS_SOURCES := $(shell find $(dir $(abspath $(PROJECT))) $(CS_LIB) \
	-name '*.cs' -o -name '*.csproj' -o -name '*.props')
CS_TOOL_SOURCES := $(shell find $(CS_ROOT)/tools/ilpatch -name '*.cs' -o -name '*.csproj')

.PHONY: all module core stage clean
.DELETE_ON_ERROR:
SHELL := bash

all: $(CS_STAGE)/.checked
	@cmp -s $(CS_STAGE)/$(NAME).ko $(NAME).ko || cp $(CS_STAGE)/$(NAME).ko $(NAME).ko

module: $(CS_STAGE)/.checked

core: $(BUILD)/core.S

stage:
	@echo $(CS_STAGE)

clean:
	rm -rf $(BUILD) $(NAME).ko

$(CS_ROOT)/build:
	@mkdir -p $@

$(CS_ILPATCH): $(CS_TOOL_SOURCES) | $(CS_ROOT)/build
	$(CS_BUILD) $(CS_ROOT)/tools/ilpatch/ilpatch.csproj
	@touch $@

$(CS_DLL): $(CS_SOURCES) | $(CS_ROOT)/build
	$(CS_BUILD) $(PROJECT)
	@touch $@

$(CS_IL)/$(CS_ASSEMBLY).dll $(BUILD)/core.h &: $(CS_DLL) $(CS_ILPATCH)
	@mkdir -p $(CS_IL)
	$(CS_DOTNET) $(CS_ILPATCH) il $(CS_DLL) $(CS_IL)/$(CS_ASSEMBLY).dll --report $(BUILD)/il.tsv --header $(BUILD)/core.h

$(BUILD)/core.obj: $(CS_IL)/$(CS_ASSEMBLY).dll
	$$(cat $(dir $(CS_ILPATCH))ilc.path) $< -o $@ --systemmodule $(CS_ASSEMBLY) --targetos linux --targetarch x64 $(OPTIMIZE) \
		--nativelib --noscan --export-unmanaged-entrypoints --methodbodyfolding none -g

$(BUILD)/core.S: $(BUILD)/core.obj
	$(CS_DOTNET) $(CS_ILPATCH) obj $< $(CS_IL)/$(CS_ASSEMBLY).dll $@ --max-frame $(FRAMES) --report $(BUILD)/core.tsv

# Sources are gathered by content, so that an unchanged one is not compiled again.
$(CS_STAGE)/.gathered: $(SOURCES) $(wildcard $(CS_LIB)/Native/*) $(BUILD)/core.S $(BUILD)/core.h
	@test -f $(KDIR)/Makefile || { echo "No kernel headers in '$(KDIR)': install linux-headers or set KDIR."; exit 1; }
	@mkdir -p $(CS_STAGE)
	@for file in $^; do cmp -s $$file $(CS_STAGE)/$$(basename $$file) || cp $$file $(CS_STAGE)/; done
	@touch $@

# Without type information (BTF), which depends on the tools and kernel images that the machine has, and without the
# clone's place in the output.
CS_MAP := -ffile-prefix-map=$(CS_STAGE)=. -ffile-prefix-map=$(CS_STAGE)/=
CS_MAP_ASSEMBLER := $(CS_MAP) -Wa,--debug-prefix-map=$(CS_STAGE)=.
$(CS_STAGE)/.built: $(CS_STAGE)/.gathered
	+$(MAKE) -C $(KDIR) M=$(CS_STAGE) CONFIG_DEBUG_INFO_BTF_MODULES= \
		KCFLAGS="$(CS_MAP)" KAFLAGS="$(CS_MAP_ASSEMBLER)" modules 2>&1 \
		| tee $(CS_STAGE)/kbuild.log; test $${PIPESTATUS[0]} = 0
	@! grep -E 'objtool:|WARNING: modpost' $(CS_STAGE)/kbuild.log || \
		{ echo "Warnings count as errors here."; rm -f $(CS_STAGE)/*.o; exit 1; }
	@touch $@

$(CS_STAGE)/.checked: $(CS_STAGE)/.built
	$(CS_DOTNET) $(CS_ILPATCH) check $(CS_STAGE)/$(NAME).ko --core $(CS_STAGE)/core.o \
		$(if $(IMPORTS),--imports $(IMPORTS)) --report $(BUILD)/module.tsv
	@touch $@
