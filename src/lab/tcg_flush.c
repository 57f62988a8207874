/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A QEMU plugin that makes COLO's secondary usable without KVM.
 *
 * Under TCG, QEMU keeps translations of the guest's code. A checkpoint replaces the secondary's memory behind the back of
 * whatever keeps translations and code the same, so they have to be thrown away then. QEMU 10.1 and older did so whenever a
 * CPU's state was loaded (cpu_common_post_load); since then it does so only for loadvm (accel/tcg/tcg-all.c,
 * tcg_vm_change_state: RUN_STATE_RESTORE_VM), not for COLO. Seen with 11.1.2: a secondary whose guest had changed code went
 * on with the old one after 97 of 100 checkpoints, and now and then its kernel crashed.
 *
 * So: throw them away each time the VM stops. While it is stopped no new ones arise, so none outlives a checkpoint.
 * Under KVM there are no translations, and no such problem.
 */

/* include/plugins/qemu-plugin.h: the interface of QEMU 11.1; nothing of it is used but being loaded. */
__attribute__((visibility("default"))) int qemu_plugin_version = 7;

/* Exported by QEMU's program itself: include/system/runstate.h, include/exec/tb-flush.h. */
void *qemu_add_vm_change_state_handler(void (*changed)(void *opaque, _Bool running, int state), void *opaque);
void tb_flush__exclusive_or_serial(void);

static void changed(void *opaque, _Bool running, int state)
{
	(void)opaque;
	(void)state;
	if (!running)
		tb_flush__exclusive_or_serial();
}

__attribute__((visibility("default"))) int qemu_plugin_install(unsigned long id, const void *info, int argc, char **argv)
{
	(void)id;
	(void)info;
	(void)argc;
	(void)argv;
	qemu_add_vm_change_state_handler(changed, 0);
	return 0;
}
