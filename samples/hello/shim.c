// SPDX-License-Identifier: GPL-2.0-only
/* The C side of the sample: a character device whose reads and writes go to C#. */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>
#include "cskernel.h"

#define HELLO_BUFFER 64

/* Exported by Greeter.cs. */
int hello_read(char *buffer, int size);
int hello_write(const char *text, int length);

/* Called by Greeter.cs. */
void hello_warn(void);

static long hello_enter(void *method, void *buffer, long size)
{
	struct cs_result result = cs_enter(method, (long)buffer, size, 0, 0);

	if (result.site)
		cs_report_trap(result.site);
	return result.value;
}

static ssize_t hello_fop_read(struct file *file, char __user *to, size_t count, loff_t *offset)
{
	char buffer[HELLO_BUFFER] = {};
	long length;

	if (*offset)
		return 0;
	length = hello_enter(hello_read, buffer, sizeof(buffer));
	return length < 0 ? length : simple_read_from_buffer(to, count, offset, buffer, length);
}

static ssize_t hello_fop_write(struct file *file, const char __user *from, size_t count, loff_t *offset)
{
	char buffer[HELLO_BUFFER];
	long error;

	count = min(count, sizeof(buffer));
	if (copy_from_user(buffer, from, count))
		return -EFAULT;
	error = hello_enter(hello_write, buffer, count);
	return error < 0 ? error : count;
}

void hello_warn(void)
{
	WARN(1, "hello: asked to warn\n");
}

static const struct file_operations hello_fops = {
	.owner = THIS_MODULE,
	.read = hello_fop_read,
	.write = hello_fop_write,
};

static struct miscdevice hello_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "hello",
	.fops = &hello_fops,
};

module_misc_device(hello_device);
MODULE_AUTHOR("The SharpKVM authors");
MODULE_DESCRIPTION("A greeting from C# in the kernel");
MODULE_LICENSE("GPL");
