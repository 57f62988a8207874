#!/usr/bin/perl
# The services of the lab guest. README.md beside this file says what each port does.
#
# One process a service, each an epoll loop over non-blocking sockets, so that a write to a hung disk does not stop
# the echo beside it, and a connection costs neither a process nor memory of its own that a checkpoint would copy.
# This first process only watches: a service that dies is reported on the console and started again.
#
# The pattern is the stream of 8-byte big-endian counters 0, 1, 2, ...: every byte is determined by its position, so
# one side can tell lost, repeated and foreign bytes from right ones without keeping anything.
use strict;
use warnings;
use feature 'bitwise';

use Digest::MD5 qw(md5_hex);
use Errno qw(EAGAIN EINTR);
use Fcntl qw(F_GETFL F_SETFL O_CREAT O_NONBLOCK O_RDONLY O_RDWR O_SYNC O_TRUNC O_WRONLY);
use Socket qw(
  AF_INET6 IPPROTO_IPV6 IPPROTO_TCP IPV6_V6ONLY SO_LINGER SO_REUSEADDR SOCK_DGRAM SOCK_STREAM SOL_SOCKET TCP_NODELAY
  inet_ntop pack_sockaddr_in6 unpack_sockaddr_in6
);
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);

# --- numbers of the x86-64 kernel -----------------------------------------------------------------------------------

use constant {
    SYS_MMAP          => 9,
    SYS_PREAD64       => 17,
    SYS_FSYNC         => 74,
    SYS_REBOOT        => 169,
    SYS_EPOLL_WAIT    => 232,
    SYS_EPOLL_CTL     => 233,
    SYS_EPOLL_CREATE1 => 291,

    EPOLLIN      => 0x001,
    EPOLLOUT     => 0x004,
    EPOLLERR     => 0x008,
    EPOLLHUP     => 0x010,
    EPOLL_ADD    => 1,
    EPOLL_DEL    => 2,
    EPOLL_MOD    => 3,
    EPOLL_EVENTS => 64,    # taken per call
    EVENT_BYTES  => 12,    # struct epoll_event is packed on x86-64

    O_DIRECT => 0x4000,

    REBOOT_MAGIC1   => 0xfee1dead,
    REBOOT_MAGIC2   => 0x28121969,
    REBOOT_POWEROFF => 0x4321fedc,
    REBOOT_RESTART  => 0x01234567,
};

# --- limits ---------------------------------------------------------------------------------------------------------

use constant {
    BACKLOG            => 1024,
    READ_BYTES         => 65536,
    FLUSH_BYTES_MAX    => 1 << 20,    # sent to one connection before the others get their turn
    LINE_BYTES_MAX     => 4096,
    HTTP_HEAD_MAX      => 16384,
    DATAGRAMS_PER_TURN => 64,
    BULK_LINES         => 128,        # of the random service, made at once
    BLOCK_BYTES        => 4096,       # of the disk service
    FILES_KEPT         => 64,         # by the files service
    PAGE_BYTES         => 4096,
    MIB                => 1 << 20,
    DIRTY_TICK_S       => 0.02,
};

# --- the console ----------------------------------------------------------------------------------------------------

open(my $console, '>', '/dev/console') or die "console: $!";
$console->autoflush(1);

sub report {
    my ($text) = @_;
    print {$console} "colo-guest: $text\n";
    return;
}

# --- the pattern ----------------------------------------------------------------------------------------------------

# A block is made of a template with the low bits of its counters, and the high bits that all of them share.
use constant {
    PATTERN_COUNTERS    => 4096,
    PATTERN_SHIFT       => 12,
    PATTERN_BYTES       => 32768,
    PATTERN_BYTES_SHIFT => 15,
    PATTERN_BYTES_MASK  => 32767,
    PATTERN_BLOCKS_KEPT => 16,
};
my $pattern_template = pack('Q>*', 0 .. PATTERN_COUNTERS - 1);
my %pattern_blocks;
my @pattern_order;

# A reference to block number $index: the bytes from $index * PATTERN_BYTES on.
sub pattern_block {
    my ($index) = @_;
    my $block = $pattern_blocks{$index};
    return $block if $block;
    my $bytes = (pack('Q>', $index << PATTERN_SHIFT) x PATTERN_COUNTERS) |. $pattern_template;
    delete $pattern_blocks{ shift @pattern_order } if @pattern_order >= PATTERN_BLOCKS_KEPT;
    push @pattern_order, $index;
    return $pattern_blocks{$index} = \$bytes;
}

# Position of the first byte of $$data[$from, $from + $count) that is not the pattern's from $position on, -1 if none.
sub pattern_mismatch {
    my ($data, $from, $count, $position) = @_;
    while ($count > 0) {
        my $block  = pattern_block($position >> PATTERN_BYTES_SHIFT);
        my $offset = $position & PATTERN_BYTES_MASK;
        my $piece  = PATTERN_BYTES - $offset;
        $piece = $count if $piece > $count;
        my $got = substr($$data, $from, $piece);
        my $right = $piece == PATTERN_BYTES ? $got eq $$block : $got eq substr($$block, $offset, $piece);
        if (!$right) {
            my $difference = $got ^. substr($$block, $offset, $piece);
            $difference =~ /^\0*/;
            return $position + $+[0];
        }
        $from     += $piece;
        $position += $piece;
        $count    -= $piece;
    }
    return -1;
}

# --- connections ----------------------------------------------------------------------------------------------------

# A connection sends, in this order: the bytes in `out`, then what `refill` returns until that is empty, then `owed`
# bytes of the pattern from position `sent` on. Requests are taken from `in` only when nothing of that is left, so
# answers keep their order and a client that does not read costs no memory.
my ($epoll, %connections);

sub epoll_control {
    my ($operation, $fd, $events) = @_;
    my $event = pack('LQ', $events, $fd);
    return if syscall(SYS_EPOLL_CTL, $epoll, $operation, $fd, $event) == 0;
    die "epoll_ctl: $!" unless $operation == EPOLL_DEL;
    return;
}

sub set_nonblocking {
    my ($socket) = @_;
    fcntl($socket, F_SETFL, fcntl($socket, F_GETFL, 0) | O_NONBLOCK) or die "fcntl: $!";
    return;
}

sub open_connection {
    my ($socket, $peer) = @_;
    set_nonblocking($socket);
    setsockopt($socket, IPPROTO_TCP, TCP_NODELAY, 1);
    my $fd = fileno($socket);
    $connections{$fd} = {
        socket => $socket, fd => $fd, peer => $peer, interest => EPOLLIN,
        in => '', out => '', refill => undef, owed => 0, sent => 0,
        received => 0, sink => 0, chain => '', end_of_input => 0, closing => 0,
    };
    epoll_control(EPOLL_ADD, $fd, EPOLLIN);
    return;
}

sub close_connection {
    my ($c) = @_;
    epoll_control(EPOLL_DEL, $c->{fd}, 0);
    delete $connections{ $c->{fd} };
    close($c->{socket});
    return;
}

# A wrong byte of the client is the one thing this guest exists to notice: said on the console, and the connection is
# reset instead of closed so that the client cannot take it for a normal end.
sub reject_wrong_byte {
    my ($c, $service, $position) = @_;
    my (undef, $address) = unpack_sockaddr_in6($c->{peer});
    my ($port) = unpack_sockaddr_in6($c->{peer});
    report("WRONG BYTE service=$service position=$position peer=" . inet_ntop(AF_INET6, $address) . " port=$port");
    setsockopt($c->{socket}, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0));
    close_connection($c);
    return;
}

sub has_output {
    my ($c) = @_;
    return $c->{out} ne '' || $c->{refill} || $c->{owed} > 0;
}

# Sends what is to be sent. 1: all of it, 0: some is left for later, -1: the connection is gone.
sub flush_output {
    my ($c) = @_;
    my $budget = FLUSH_BYTES_MAX;
    while (1) {
        if ($c->{out} eq '' && $c->{refill}) {
            $c->{out} = $c->{refill}->($c);
            $c->{refill} = undef if $c->{out} eq '';
            next;
        }
        my $written;
        if ($c->{out} ne '') {
            # A short answer's head and the begin of its body go out in one segment.
            if ($c->{owed} > 0 && length($c->{out}) < 4096 && !$c->{refill}) {
                my $offset = $c->{sent} & PATTERN_BYTES_MASK;
                my $piece  = PATTERN_BYTES - $offset;
                $piece = $c->{owed} if $piece > $c->{owed};
                $c->{out} .= substr(${ pattern_block($c->{sent} >> PATTERN_BYTES_SHIFT) }, $offset, $piece);
                $c->{sent} += $piece;
                $c->{owed} -= $piece;
            }
            $written = syswrite($c->{socket}, $c->{out});
            substr($c->{out}, 0, $written, '') if $written;
        } elsif ($c->{owed} > 0) {
            my $offset = $c->{sent} & PATTERN_BYTES_MASK;
            my $piece  = PATTERN_BYTES - $offset;
            $piece = $c->{owed} if $piece > $c->{owed};
            $written = syswrite($c->{socket}, ${ pattern_block($c->{sent} >> PATTERN_BYTES_SHIFT) }, $piece, $offset);
            if ($written) {
                $c->{sent} += $written;
                $c->{owed} -= $written;
            }
        } else {
            return 1;
        }
        if (!defined $written) {
            next if $! == EINTR;
            return 0 if $! == EAGAIN;
            close_connection($c);
            return -1;
        }
        $budget -= $written;
        return 0 if $budget <= 0;
    }
}

# Takes requests and sends answers until one of the two needs the network again.
sub pump {
    my ($c, $service) = @_;
    while (1) {
        my $flushed = flush_output($c);
        return if $flushed < 0;
        if ($flushed) {
            if ($c->{closing}) {
                close_connection($c);
                return;
            }
            my $taken = $service->{request}->($c);
            return if !$connections{ $c->{fd} } || $connections{ $c->{fd} } != $c;
            next if $taken || has_output($c) || $c->{closing};
            if ($c->{end_of_input}) {
                close_connection($c);
                return;
            }
        }
        last;
    }
    my $output   = has_output($c);
    my $interest = $output ? EPOLLOUT : 0;
    $interest |= EPOLLIN if !$c->{end_of_input} && !$c->{closing} && (!$output || $service->{reads_always});
    if ($interest != $c->{interest}) {
        $c->{interest} = $interest;
        epoll_control(EPOLL_MOD, $c->{fd}, $interest);
    }
    return;
}

sub read_input {
    my ($c, $service) = @_;
    my $count = sysread($c->{socket}, $c->{in}, READ_BYTES, length $c->{in});
    if (!defined $count) {
        return 1 if $! == EAGAIN || $! == EINTR;
        close_connection($c);
        return 0;
    }
    $c->{end_of_input} = 1 if $count == 0;
    # The duplex service verifies at once, also while it still owes output.
    if ($service->{reads_always}) {
        $service->{request}->($c);
        return 0 if !$connections{ $c->{fd} } || $connections{ $c->{fd} } != $c;
    }
    return 1;
}

# What is not a request ends the connection.
sub reject_request {
    my ($c) = @_;
    $c->{out}     = "ERROR not a request\n";
    $c->{closing} = 1;
    return 0;
}

# The next line of the input without its end, undef if there is none yet.
sub take_line {
    my ($c) = @_;
    my $end = index($c->{in}, "\n");
    if ($end < 0) {
        reject_request($c) if length $c->{in} > LINE_BYTES_MAX;
        return undef;
    }
    my $line = substr($c->{in}, 0, $end + 1, '');
    $line =~ s/\r?\n$//;
    return $line;
}

# --- port 7001: both sides send the pattern, the guest as many bytes as it has received ------------------------------

sub duplex_request {
    my ($c) = @_;
    my $count = length $c->{in};
    return 0 unless $count;
    my $wrong = pattern_mismatch(\$c->{in}, 0, $count, $c->{received});
    if ($wrong >= 0) {
        reject_wrong_byte($c, 'duplex', $wrong);
        return 0;
    }
    $c->{received} += $count;
    $c->{owed}     += $count;
    $c->{in} = '';
    return 1;
}

# --- port 7002: "N" -> N bytes of the pattern --------------------------------------------------------------------------

sub source_request {
    my ($c) = @_;
    my $line = take_line($c);
    return 0 unless defined $line;
    return reject_request($c) if $line !~ /^\d{1,15}$/;
    $c->{owed} = 0 + $line;
    return 1;
}

# --- port 7003: "N" and N bytes of the pattern -> "OK N" ---------------------------------------------------------------

sub sink_request {
    my ($c) = @_;
    if (!$c->{sink}) {
        my $line = take_line($c);
        return 0 unless defined $line;
        return reject_request($c) if $line !~ /^\d{1,15}$/;
        $c->{sink} = $c->{sink_left} = 0 + $line;
        if (!$c->{sink}) {
            $c->{out} = "OK 0\n";
            return 1;
        }
    }
    my $count = length $c->{in};
    $count = $c->{sink_left} if $count > $c->{sink_left};
    return 0 unless $count;
    my $wrong = pattern_mismatch(\$c->{in}, 0, $count, $c->{received});
    if ($wrong >= 0) {
        reject_wrong_byte($c, 'sink', $wrong);
        return 0;
    }
    substr($c->{in}, 0, $count, '');
    $c->{received}  += $count;
    $c->{sink_left} -= $count;
    if (!$c->{sink_left}) {
        $c->{out}  = "OK $c->{sink}\n";
        $c->{sink} = 0;
    }
    return 1;
}

# --- port 7004: what two copies of a machine cannot agree on -----------------------------------------------------------

my $urandom;

sub random_bytes {
    my ($count) = @_;
    if (!$urandom) {
        open($urandom, '<:raw', '/dev/urandom') or die "urandom: $!";
    }
    my $bytes = '';
    while (length $bytes < $count) {
        sysread($urandom, $bytes, $count - length $bytes, length $bytes) or die "urandom: $!";
    }
    return $bytes;
}

sub random_lines {
    my ($c, $count) = @_;
    my $hex   = unpack('H*', random_bytes(32 * $count));
    my $lines = '';
    for my $i (0 .. $count - 1) {
        my $random = substr($hex, 64 * $i, 64);
        $c->{chain} = md5_hex($c->{chain} . $random);
        $lines .= "$random $c->{chain}\n";
    }
    return $lines;
}

sub random_refill {
    my ($c) = @_;
    my $count = $c->{bulk} > BULK_LINES ? BULK_LINES : $c->{bulk};
    $c->{bulk} -= $count;
    return $count ? random_lines($c, $count) : '';
}

sub random_request {
    my ($c) = @_;
    my $line = take_line($c);
    return 0 unless defined $line;
    if ($line =~ /^BULK (\d{1,9})$/) {
        $c->{bulk}   = 0 + $1;
        $c->{refill} = \&random_refill;
    } else {
        $c->{out} = random_lines($c, 1);
    }
    return 1;
}

# --- port 7005: the disk ------------------------------------------------------------------------------------------------

my ($disk_writer, $disk_reader, $disk_bytes, $direct_buffer);

# Writes go through the page cache and wait for the disk's flush; reads pass by the cache, into memory that is aligned
# as O_DIRECT wants it.
sub open_disk {
    return 1 if $disk_reader;
    sysopen($disk_writer, '/dev/vda', O_RDWR | O_SYNC) or return 0;
    sysopen($disk_reader, '/dev/vda', O_RDONLY | O_DIRECT) or return 0;
    open(my $size, '<', '/sys/class/block/vda/size') or return 0;
    $disk_bytes = 512 * <$size>;
    # PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS
    $direct_buffer = syscall(SYS_MMAP, 0, BLOCK_BYTES, 3, 0x22, -1, 0);
    die "mmap: $!" if $direct_buffer == -1;
    return 1;
}

sub disk_block_content {
    my ($n) = @_;
    return pack('Q>*', $n * 512 .. $n * 512 + 511);
}

sub disk_answer {
    my ($line) = @_;
    my ($command, $n) = $line =~ /^(WRITE|READ|SIZE)(?: (\d{1,12}))?$/ or return 'ERROR unknown command';
    open_disk() or return 'ERROR no disk';
    return "SIZE $disk_bytes" if $command eq 'SIZE';
    return 'ERROR no block number' unless defined $n;
    $n += 0;
    return 'ERROR beyond the end of the disk' if ($n + 1) * BLOCK_BYTES > $disk_bytes;
    if ($command eq 'WRITE') {
        sysseek($disk_writer, $n * BLOCK_BYTES, 0);
        my $written = syswrite($disk_writer, disk_block_content($n));
        return "ERROR write: $!" unless defined $written && $written == BLOCK_BYTES;
        return "ACK $n";
    }
    my $count = syscall(SYS_PREAD64, fileno($disk_reader), $direct_buffer, BLOCK_BYTES, $n * BLOCK_BYTES);
    return "ERROR read: $!" unless $count == BLOCK_BYTES;
    return "BLOCK $n " . md5_hex(unpack('P' . BLOCK_BYTES, pack('J', $direct_buffer)));
}

sub disk_request {
    my ($c) = @_;
    my $line = take_line($c);
    return 0 unless defined $line;
    $c->{out} = disk_answer($line) . "\n";
    return 1;
}

# --- port 7008: files -----------------------------------------------------------------------------------------------------

my $files_directory;

# The init mounts a second disk there.
sub open_files_directory {
    return 1 if $files_directory;
    open(my $mounts, '<', '/proc/mounts') or return 0;
    return 0 unless grep { m{ /data ext4 } } <$mounts>;
    mkdir '/data/files';
    return sysopen($files_directory, '/data/files', O_RDONLY);
}

# A file of one to eight blocks under its final name, on the medium with its directory entry; an old one goes.
sub files_answer {
    my ($line) = @_;
    my ($n) = $line =~ /^PUT (\d{1,9})$/ or return 'ERROR unknown command';
    $n += 0;
    open_files_directory() or return 'ERROR no file system';
    my $name    = "/data/files/$n";
    my $content = disk_block_content($n) x (1 + $n % 8);
    sysopen(my $file, "$name.new", O_WRONLY | O_CREAT | O_TRUNC) or return "ERROR open: $!";
    my $written = syswrite($file, $content);
    return "ERROR write: $!" unless defined $written && $written == length $content;
    return "ERROR fsync: $!" if syscall(SYS_FSYNC, fileno($file)) != 0;
    close($file) or return "ERROR close: $!";
    rename("$name.new", $name) or return "ERROR rename: $!";
    unlink('/data/files/' . ($n - FILES_KEPT)) if $n >= FILES_KEPT;
    return "ERROR fsync: $!" if syscall(SYS_FSYNC, fileno($files_directory)) != 0;
    return "ACK $n";
}

sub files_request {
    my ($c) = @_;
    my $line = take_line($c);
    return 0 unless defined $line;
    $c->{out} = files_answer($line) . "\n";
    return 1;
}

# --- port 7007: memory, and the power switch ----------------------------------------------------------------------------

my ($dirty_memory, $dirty_next_page, $dirty_generation, $dirty_rate, $dirty_due, $dirty_time) = ('', 0, 0, 0, 0, 0);

sub dirty_limit_mib {
    open(my $info, '<', '/proc/meminfo') or return 0;
    while (<$info>) {
        return int($1 / 1024 / 2) if /^MemTotal:\s+(\d+) kB/;
    }
    return 0;
}

# Changes one word in each of $count pages, going on where the last call stopped.
sub dirty_pages {
    my ($count) = @_;
    my $pages = length($dirty_memory) / PAGE_BYTES;
    for (1 .. $count) {
        $dirty_next_page = 0 if $dirty_next_page >= $pages;
        substr($dirty_memory, PAGE_BYTES * $dirty_next_page++, 8) = pack('Q', ++$dirty_generation);
    }
    return;
}

sub grow_dirty_memory {
    my ($mib) = @_;
    return if length $dirty_memory >= $mib * MIB;
    $dirty_memory = '';
    vec($dirty_memory, $mib * MIB - 1, 8) = 0;
    $dirty_next_page = 0;
    return;
}

# Called every DIRTY_TICK_S while a rate is set.
sub memory_tick {
    my $now = clock_gettime(CLOCK_MONOTONIC);
    $dirty_due += ($now - $dirty_time) * $dirty_rate * MIB / PAGE_BYTES;
    $dirty_time = $now;
    # A guest that was stopped for a checkpoint does not catch up on more than a tenth of a second.
    my $most = $dirty_rate * MIB / PAGE_BYTES / 10;
    $dirty_due = $most if $dirty_due > $most;
    my $count = int $dirty_due;
    $dirty_due -= $count;
    dirty_pages($count);
    return;
}

sub memory_request {
    my ($c) = @_;
    my $line = take_line($c);
    return 0 unless defined $line;
    $c->{out} = "DONE\n";
    if ($line =~ /^(DIRTY|DIRTYRATE) (\d{1,6})$/) {
        my ($command, $mib) = ($1, 0 + $2);
        my $limit = dirty_limit_mib();
        if ($command eq 'DIRTY' && $mib > $limit) {
            $c->{out} = "ERROR at most $limit MiB\n";
        } elsif ($command eq 'DIRTY') {
            if ($mib) {
                grow_dirty_memory($mib);
                dirty_pages($mib * MIB / PAGE_BYTES);
            }
        } else {
            # A second's worth of pages, as far as there is memory, then the same ones again.
            grow_dirty_memory($mib > $limit ? $limit : $mib) if $mib;
            ($dirty_rate, $dirty_due, $dirty_time) = ($mib, 0, clock_gettime(CLOCK_MONOTONIC));
        }
    } elsif ($line eq 'POWEROFF' || $line eq 'REBOOT') {
        report($line);
        syscall(SYS_REBOOT, REBOOT_MAGIC1, REBOOT_MAGIC2, $line eq 'REBOOT' ? REBOOT_RESTART : REBOOT_POWEROFF, 0);
    } else {
        $c->{out} = "ERROR unknown command\n";
    }
    return 1;
}

# --- port 80: HTTP ------------------------------------------------------------------------------------------------------

use constant HOME_PAGE => <<'HTML';
<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>colo guest</title></head>
<body><h1>It works</h1><p>This page comes from the protected guest.</p></body>
</html>
HTML

sub http_request {
    my ($c) = @_;
    my $end = index($c->{in}, "\r\n\r\n");
    if ($end < 0) {
        $c->{closing} = 1 if length $c->{in} > HTTP_HEAD_MAX;
        return 0;
    }
    my $head = substr($c->{in}, 0, $end + 4, '');
    my ($method, $path, $version) = $head =~ m{^([A-Z]+) (\S+) HTTP/1\.([01])\r\n};
    my ($status, $type, $body, $pattern_bytes) = ('200 OK', 'text/plain', '', 0);
    if (!defined $method) {
        ($status, $body, $version) = ('400 Bad Request', "not an HTTP/1 request\n", 0);
    } elsif ($method ne 'GET' && $method ne 'HEAD') {
        # A body that may follow is not read, so the connection cannot go on.
        ($status, $body, $version) = ('405 Method Not Allowed', "GET and HEAD only\n", 0);
    } elsif ($path eq '/') {
        ($type, $body) = ('text/html; charset=utf-8', HOME_PAGE);
    } elsif ($path =~ m{^/size/(\d{1,15})$}) {
        ($type, $pattern_bytes) = ('application/octet-stream', 0 + $1);
    } elsif ($path eq '/random') {
        $body = unpack('H*', random_bytes(32)) . "\n";
    } elsif ($path eq '/time') {
        $body = sprintf("%.6f\n", Time::HiRes::time());
    } else {
        ($status, $body) = ('404 Not Found', "no such page\n");
    }
    my $keep = $version && $head !~ /^connection:.*\bclose\b/im;
    my $length = $pattern_bytes || length $body;
    $c->{out} = "HTTP/1.1 $status\r\nContent-Type: $type\r\nContent-Length: $length\r\n";
    $c->{out} .= "Connection: close\r\n" unless $keep;
    $c->{out} .= "\r\n";
    if (defined $method && $method ne 'HEAD') {
        $c->{out} .= $body;
        ($c->{sent}, $c->{owed}) = (0, $pattern_bytes);
    }
    $c->{closing} = 1 unless $keep;
    return 1;
}

# --- port 7006: UDP echo ------------------------------------------------------------------------------------------------

sub udp_echo_ready {
    my ($socket) = @_;
    for (1 .. DATAGRAMS_PER_TURN) {
        my $peer = recv($socket, my $payload, 65535, 0);
        return unless defined $peer;
        send($socket, $payload, 0, $peer);
    }
    return;
}

# --- the loop -----------------------------------------------------------------------------------------------------------

my @services = (
    { name => 'duplex', port => 7001, request => \&duplex_request, reads_always => 1 },
    { name => 'source', port => 7002, request => \&source_request },
    { name => 'sink',   port => 7003, request => \&sink_request },
    { name => 'random', port => 7004, request => \&random_request },
    { name => 'disk',   port => 7005, request => \&disk_request },
    { name => 'echo',   port => 7006, datagram => \&udp_echo_ready },
    { name => 'memory', port => 7007, request => \&memory_request },
    { name => 'files',  port => 7008, request => \&files_request },
    { name => 'http',   port => 80,   request => \&http_request },
);

sub listen_on {
    my ($service) = @_;
    socket(my $socket, AF_INET6, $service->{datagram} ? SOCK_DGRAM : SOCK_STREAM, 0) or die "socket: $!";
    setsockopt($socket, SOL_SOCKET, SO_REUSEADDR, 1);
    # IPv4 clients come in with mapped addresses.
    setsockopt($socket, IPPROTO_IPV6, IPV6_V6ONLY, 0) or die "IPV6_V6ONLY: $!";
    bind($socket, pack_sockaddr_in6($service->{port}, "\0" x 16)) or die "bind $service->{port}: $!";
    if (!$service->{datagram}) {
        listen($socket, BACKLOG) or die "listen: $!";
    }
    set_nonblocking($socket);
    return $socket;
}

sub accept_connections {
    my ($listener) = @_;
    while (my $peer = accept(my $socket, $listener)) {
        open_connection($socket, $peer);
    }
    return;
}

sub serve {
    my ($service) = @_;
    my $listener    = $service->{socket};
    my $listener_fd = fileno($listener);
    my $events      = "\0" x (EVENT_BYTES * EPOLL_EVENTS);
    $epoll = syscall(SYS_EPOLL_CREATE1, 0);
    die "epoll_create1: $!" if $epoll < 0;
    epoll_control(EPOLL_ADD, $listener_fd, EPOLLIN);
    while (1) {
        my $timeout_ms = $dirty_rate ? int(1000 * DIRTY_TICK_S) : -1;
        my $count      = syscall(SYS_EPOLL_WAIT, $epoll, $events, EPOLL_EVENTS, $timeout_ms);
        memory_tick() if $dirty_rate;
        next if $count <= 0;
        my @ready = unpack('(LQ)' . $count, $events);
        while (my ($flags, $fd) = splice(@ready, 0, 2)) {
            if ($fd == $listener_fd) {
                $service->{datagram} ? $service->{datagram}->($listener) : accept_connections($listener);
                next;
            }
            my $c = $connections{$fd} or next;
            if ($flags & (EPOLLERR | EPOLLHUP) && !($flags & EPOLLIN)) {
                close_connection($c);
                next;
            }
            if ($flags & EPOLLIN) {
                read_input($c, $service) or next;
            }
            pump($c, $service);
        }
    }
}

sub start {
    my ($service) = @_;
    my $pid = fork // die "fork: $!";
    return $pid if $pid;
    # Named so in the process list.
    $0 = "colo $service->{name}";
    eval { serve($service); 1 } or report("service $service->{name} failed: $@");
    exit 1;
}

$SIG{PIPE} = 'IGNORE';
my %running;
$_->{socket} = listen_on($_) for @services;
$running{ start($_) } = $_ for @services;
report('READY boot=' . unpack('H*', random_bytes(16)));

while ((my $pid = wait) > 0) {
    my $service = delete $running{$pid} or next;
    report("service $service->{name} ended with status $?, started again");
    $running{ start($service) } = $service;
}
