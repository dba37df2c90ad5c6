// SPDX-License-Identifier: GPL-2.0-only
// The first sector of L1's disk where the emulator loads no kernel itself (BootDisk.cs): asks the BIOS for the memory
// map, reads the disk into memory, and enters Linux by its 32-bit entry point for virtual machines (x86/HVM direct boot
// ABI). The disk is read by programmed I/O: the BIOS reaches low memory only.

#define MEMORY_MAP 0x8000
#define START_INFO 0x9000
#define MEMORY_MAP_ENTRIES 48		// in the start info
#define ENTRY_SIZE 24

#define SECTORS_AT_ONCE 128
#define ATA_DATA 0x1f0
#define ATA_COUNT 0x1f2
#define ATA_STATUS 0x1f7		// command, when written
#define ATA_READ 0x20
#define ATA_BUSY_OR_DATA 0x88
#define ATA_DATA_READY 0x08

	.code16
	.globl _start
_start:
	ljmp $0, $1f
1:	xor %ax, %ax
	mov %ax, %ds
	mov %ax, %es
	mov %ax, %ss
	mov $0x7c00, %sp
	cld

	xor %ebx, %ebx
	mov $MEMORY_MAP, %di
2:	mov $0xe820, %eax
	mov $0x534d4150, %edx
	mov $ENTRY_SIZE, %ecx
	int $0x15
	jc 3f
	add $ENTRY_SIZE, %di
	incl entries
	test %ebx, %ebx
	jnz 2b

3:	in $0x92, %al			// A20
	or $2, %al
	out %al, $0x92
	cli
	lgdt table
	mov %cr0, %eax
	or $1, %al
	mov %eax, %cr0
	ljmp $8, $4f

	.code32
4:	mov $16, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov %eax, %fs
	mov %eax, %gs

	mov $ranges, %ebp
range:	mov 8(%ebp), %ebx		// sectors to go
	test %ebx, %ebx
	jz done
	mov (%ebp), %edi
	mov 4(%ebp), %esi
command:
	mov $SECTORS_AT_ONCE, %ecx
	cmp %ecx, %ebx
	jae 5f
	mov %ebx, %ecx
5:	mov $ATA_COUNT, %edx
	mov %ecx, %eax
	out %al, %dx
	mov %esi, %eax			// 28 bits of address go to the next four ports, and that it is one, and the disk
	or $0xe0000000, %eax
6:	inc %edx
	out %al, %dx
	shr $8, %eax
	jnz 6b
	inc %edx
	mov $ATA_READ, %al
	out %al, %dx
	add %ecx, %esi
	sub %ecx, %ebx
sector:	in %dx, %al
	and $ATA_BUSY_OR_DATA, %al
	cmp $ATA_DATA_READY, %al
	jne sector
	push %ecx
	mov $ATA_DATA, %edx
	mov $256, %ecx
	rep insw
	pop %ecx
	mov $ATA_STATUS, %edx
	loop sector
	test %ebx, %ebx
	jnz command
	add $12, %ebp
	jmp range

done:	mov $START_INFO, %ebx
	mov entries, %eax
	mov %eax, MEMORY_MAP_ENTRIES(%ebx)
	jmp *entry

	.balign 8
segments:
	.quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
table:	.word . - segments - 1
	.long segments
entries:
	.long 0

	// Filled in when the disk is written: the kernel's entry point, and ranges of memory address, first sector and
	// number of sectors, up to one without sectors.
	.org 0x100
entry:	.long 0
ranges:
	.org 0x1fe
	.word 0xaa55
