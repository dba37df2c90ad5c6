// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Mmu;

/// <summary>
/// A list of table pages. Each holds the address of the next in its first entry, so that a list needs no memory of its
/// own; the address of a page has its low bits clear, so hardware that still walks a retired table reads 'not present'.
/// </summary>
internal struct TablePool
{
    private Hpa _first;
    public int Count;

    public void Push(Hpa page)
    {
        KernelPages.Entries(page)[0] = _first.Value;
        _first = page;
        Count++;
    }

    /// <summary>Takes a page. Its entries are zero if they were when it was put in.</summary>
    public bool TryPop(out Hpa page)
    {
        page = _first;
        if (page.IsNull)
            return false;
        ref ulong link = ref KernelPages.Entries(page)[0];
        _first = new Hpa(link);
        link = 0;
        Count--;
        return true;
    }

    /// <summary>Sees to it that there are so many pages, all zero.</summary>
    /// <returns>False when the kernel has no memory.</returns>
    public bool TopUp(int count)
    {
        while (Count < count)
        {
            Hpa page = KernelPages.Allocate();
            if (page.IsNull)
                return false;
            Push(page);
        }
        return true;
    }

    public void Free()
    {
        while (TryPop(out Hpa page))
            KernelPages.Free(page);
    }
}
