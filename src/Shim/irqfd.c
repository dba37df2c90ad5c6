// SPDX-License-Identifier: GPL-2.0-only
/* eventfds that raise interrupts (irqfd): they enter the core in interrupt context. */
#include "shim.h"

#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/poll.h>

/* An eventfd of the VM. It lives until it is deassigned, or swept after its file was closed, or the VM ends. */
struct sk_irqfd {
	struct sk_vm *vm;
	struct list_head node;
	struct eventfd_ctx *trigger;
	struct eventfd_ctx *resampler;	/* signalled when the guest has ended the interrupt; NULL without */
	u32 gsi;
	bool closed;
	wait_queue_entry_t wait;
	poll_table poll;
};

static void raise(struct sk_irqfd *irqfd)
{
	sk_vm_call(irqfd->vm, sk_core_irqfd, irqfd->vm->core, irqfd->gsi, !!irqfd->resampler);
}

/* The eventfd's own lock is held, interrupts are off. */
static int signalled(wait_queue_entry_t *wait, unsigned int mode, int sync, void *key)
{
	struct sk_irqfd *irqfd = container_of(wait, struct sk_irqfd, wait);
	__poll_t events = key_to_poll(key);
	u64 count;

	if (events & EPOLLIN) {
		eventfd_ctx_do_read(irqfd->trigger, &count);
		raise(irqfd);
	}
	if (events & EPOLLHUP)
		WRITE_ONCE(irqfd->closed, true);
	return 0;
}

static void enqueue(struct file *file, wait_queue_head_t *head, poll_table *poll)
{
	add_wait_queue_priority(head, &container_of(poll, struct sk_irqfd, poll)->wait);
}

static void free_irqfd(struct sk_irqfd *irqfd)
{
	u64 count;

	eventfd_ctx_remove_wait_queue(irqfd->trigger, &irqfd->wait, &count);
	eventfd_ctx_put(irqfd->trigger);
	if (!IS_ERR_OR_NULL(irqfd->resampler))
		eventfd_ctx_put(irqfd->resampler);
	kfree(irqfd);
}

/* Frees those that nobody can signal any more, and the one named; the VM's lock is held. */
static void sweep(struct sk_vm *vm, struct eventfd_ctx *trigger, u32 gsi)
{
	struct sk_irqfd *irqfd, *next;

	list_for_each_entry_safe(irqfd, next, &vm->irqfds, node) {
		if (!READ_ONCE(irqfd->closed) && (irqfd->trigger != trigger || irqfd->gsi != gsi))
			continue;
		list_del_rcu(&irqfd->node);
		sk_synchronize_slots(vm);
		free_irqfd(irqfd);
	}
}

/* Import of the core: KVM_IRQFD, the VM's lock is held; the core has checked the GSI. */
long sk_irqfd_assign(struct sk_vm *vm, int fd, u32 gsi, int resample_fd, bool resample)
{
	struct sk_irqfd *irqfd, *other;
	struct file *file = eventfd_fget(fd);
	long result = -ENOMEM;

	sweep(vm, NULL, 0);
	if (IS_ERR(file))
		return PTR_ERR(file);
	irqfd = kzalloc(sizeof(*irqfd), GFP_KERNEL_ACCOUNT);
	if (!irqfd)
		goto put_file;
	irqfd->vm = vm;
	irqfd->gsi = gsi;
	init_waitqueue_func_entry(&irqfd->wait, signalled);
	init_poll_funcptr(&irqfd->poll, enqueue);
	INIT_LIST_HEAD(&irqfd->wait.entry);
	irqfd->trigger = eventfd_ctx_fileget(file);
	if (resample)
		irqfd->resampler = eventfd_ctx_fdget(resample_fd);
	result = PTR_ERR_OR_ZERO(irqfd->resampler);
	list_for_each_entry(other, &vm->irqfds, node) {
		if (!result && other->trigger == irqfd->trigger)
			result = -EBUSY;
	}
	if (result) {
		free_irqfd(irqfd);
		goto put_file;
	}
	list_add_tail_rcu(&irqfd->node, &vm->irqfds);
	/* From here on it raises interrupts; what was signalled before counts, too. */
	if (vfs_poll(file, &irqfd->poll) & EPOLLIN)
		raise(irqfd);
put_file:
	fput(file);
	return result;
}

/* Import of the core: the same with KVM_IRQFD_FLAG_DEASSIGN; one that is not there is no error. */
long sk_irqfd_deassign(struct sk_vm *vm, int fd, u32 gsi, bool *resampled)
{
	struct eventfd_ctx *trigger = eventfd_ctx_fdget(fd);
	struct sk_irqfd *irqfd;

	*resampled = false;
	if (IS_ERR(trigger))
		return PTR_ERR(trigger);
	sweep(vm, trigger, gsi);
	eventfd_ctx_put(trigger);
	list_for_each_entry(irqfd, &vm->irqfds, node)
		*resampled |= irqfd->resampler && irqfd->gsi == gsi;
	return 0;
}

/* Import of the core: the guest has ended the interrupt of a GSI; in an SRCU section, no lock is held. */
void sk_irqfd_resample(struct sk_vm *vm, u32 gsi)
{
	struct sk_irqfd *irqfd;

	list_for_each_entry_srcu(irqfd, &vm->irqfds, node, srcu_read_lock_held(&vm->slots_srcu)) {
		if (irqfd->resampler && irqfd->gsi == gsi)
			cs_eventfd_signal(irqfd->resampler);
	}
}

void sk_irqfds_free(struct sk_vm *vm)
{
	struct sk_irqfd *irqfd, *next;

	list_for_each_entry_safe(irqfd, next, &vm->irqfds, node)
		free_irqfd(irqfd);
}
