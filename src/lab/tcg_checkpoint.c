/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A QEMU plugin that makes COLO's secondary usable without KVM. It mends two things that go wrong when a checkpoint is loaded
 * into a QEMU that has been running under TCG, where CPU and time are QEMU's own business. Under KVM neither exists.
 *
 * Stale code. TCG keeps translations of the guest's code. A checkpoint replaces the memory behind the back of whatever keeps
 * translations and code the same, so they have to be thrown away. QEMU up to 10.1 did so whenever a CPU's state was loaded
 * (cpu_common_post_load); since then it does so only for loadvm (accel/tcg/tcg-all.c, tcg_vm_change_state), not for COLO.
 * Seen with 11.1.2: a guest whose code changes ran old code after 97 of 100 checkpoints.
 *
 * A clock that runs ahead. The time stamp counter never goes back (system/cpu-timers.c, cpu_get_ticks: cpu_ticks_prev), not
 * even to the value that has just been loaded. But a secondary runs a little longer than the primary between two checkpoints,
 * since it resumes first; so its guest's clock gained about 30 ms with each one (seen: 3.2 s after 100), all its timers fired
 * early, and each checkpoint was a jump.
 *
 * Both are set right each time the VM stops: until it runs again no translation arises and the counter stands still.
 */

/* include/plugins/qemu-plugin.h: the interface of QEMU 11.1; nothing of it is used but being loaded. */
__attribute__((visibility("default"))) int qemu_plugin_version = 7;

/* Exported by QEMU's program itself. */
void *qemu_add_vm_change_state_handler(void (*changed)(void *opaque, _Bool running, int state), void *opaque);
void tb_flush__exclusive_or_serial(void);
/* system/timers-state.h: its first member. */
extern struct {
	long cpu_ticks_prev;
} timers_state;

static void changed(void *opaque, _Bool running, int state)
{
	(void)opaque;
	(void)state;
	/* Also when it starts: something may have read the counter while the VM stood still. */
	timers_state.cpu_ticks_prev = 0;
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
