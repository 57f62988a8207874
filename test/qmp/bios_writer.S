/*
 * A boot sector that writes to all disks of the machine, through the BIOS alone: no drivers, so any disk
 * model will do, and no boot to wait for. In each round, one per timer tick (55 ms) or as fast as it can, it
 * fills sector 128 + i of every disk with "record NNNNNNNN\n" (hexadecimal), and when the disks have it, says
 * "wrote NNNNNNNN\n" on COM1.
 */
        .code16
        .globl _start
_start:
        cli
        xorw %ax, %ax
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %ss
        movw $0x7c00, %sp
        ljmp $0, $1f
1:      sti
        cld
round:
        /* The number, in hexadecimal, into the text. */
        movw $digits, %di
        movl number, %eax
        movw $8, %cx
2:      roll $4, %eax
        movb %al, %bl
        andb $0x0f, %bl
        addb $'0', %bl
        cmpb $'9', %bl
        jbe 3f
        addb $('a' - '9' - 1), %bl
3:      movb %bl, (%di)
        incw %di
        loop 2b

        /* The sector: the text, then zeroes. */
        movw $0x8000, %di
        movw $text, %si
        movw $(text_end - text), %cx
        rep movsb
        movl number, %eax
        addl $128, %eax
        movl %eax, lba

        movb $0x80, drive
4:      movb $0x43, %ah                 /* extended write */
        xorb %al, %al
        movb drive, %dl
        movw $packet, %si
        int $0x13
        jc fail
        incb drive
        movb drive, %al
        subb $0x80, %al
        cmpb 0x475, %al                 /* BIOS data area: number of hard disks */
        jb 4b

        movw $said, %si
        call say
        movw $digits, %si
        call say
        incl number
        testb $0xff, idle
        jz round
        hlt
        jmp round

fail:   movw $failed, %si
        call say
5:      hlt
        jmp 5b

/* Sends the text at %si to COM1, up to a zero. */
say:    lodsb
        testb %al, %al
        jz 7f
        movb %al, %bl
6:      movw $0x3fd, %dx
        inb %dx, %al
        testb $0x20, %al
        jz 6b
        movw $0x3f8, %dx
        movb %bl, %al
        outb %al, %dx
        jmp say
7:      ret

said:   .asciz "wrote "
failed: .asciz "the BIOS could not write\n"
text:   .ascii "record "
digits: .ascii "00000000\n"
text_end:
        .byte 0
        .balign 4
number: .long 0
drive:  .byte 0
idle:   .byte 1
        .balign 4
packet: .byte 16, 0, 1, 0
        .word 0x8000, 0
lba:    .long 0, 0
        .org 510
        .word 0xaa55
