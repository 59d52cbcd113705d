#!/usr/bin/perl
# What the cables of the lab's VMs lead to: a frame that comes from one end of a segment goes to its other ends.
#
#     switch.pl END… -- END… -- …      the sockets that the ends of each segment listen on
#
# It keeps the order of frames, and never waits for a VM that takes none: it keeps them, and drops what is too much. (qemu
# blocks when it writes to a socket that is full, so two VMs that are wired to each other directly stop each other; and its
# own hub lets frames overtake others that wait.)
use strict;
use warnings;
use IO::Select;
use IO::Socket::UNIX;

use constant KEPT => 64 << 20; # bytes for one end

my (%ends, @segment);
my ($reads, $writes) = (IO::Select->new, IO::Select->new);
for my $word (@ARGV, '--') {
    if ($word eq '--') {
        for my $end (@segment) { $end->{others} = [grep { $_ != $end } @segment]; }
        @segment = ();
        next;
    }
    my $socket = IO::Socket::UNIX->new(Peer => $word) or die "$word: $!\n";
    $socket->blocking(0);
    my $end = { socket => $socket, in => '', out => '' };
    $ends{fileno $socket} = $end;
    push @segment, $end;
    $reads->add($socket);
}

$SIG{PIPE} = 'IGNORE';
sub gone { # a VM that has ended
    my ($end) = @_;
    return if !$end->{socket};
    $_->remove($end->{socket}) for $reads, $writes;
    delete $ends{fileno $end->{socket}};
    @$end{qw(socket out)} = (undef, '');
}
sub flush_out {
    my ($end) = @_;
    my $socket = $end->{socket} or return;
    while (length $end->{out}) {
        my $count = syswrite $socket, $end->{out}, 1 << 18;
        if (defined $count) { substr($end->{out}, 0, $count, ''); next; }
        return gone($end) if !$!{EAGAIN} && !$!{EINTR};
        last if $!{EAGAIN};
    }
    length $end->{out} ? $writes->add($socket) : $writes->remove($socket);
}

while ($reads->count) {
    my ($readable, $writable) = IO::Select->select($reads, $writes);
    for my $socket (@$writable) { flush_out($ends{fileno $socket}) if defined fileno $socket && $ends{fileno $socket}; }
    for my $socket (@$readable) {
        my $end = defined fileno $socket ? $ends{fileno $socket} : undef;
        next if !$end;
        my $count = sysread $socket, $end->{in}, 1 << 18, length $end->{in};
        if (!$count) {
            gone($end) if defined $count || (!$!{EAGAIN} && !$!{EINTR});
            next;
        }
        # whole frames: four bytes of length, then the frame
        my $whole = 0;
        while (length($end->{in}) >= $whole + 4) {
            my $next = $whole + 4 + unpack 'N', substr($end->{in}, $whole, 4);
            last if length($end->{in}) < $next;
            $whole = $next;
        }
        my $frames = substr $end->{in}, 0, $whole, '';
        for my $other (@{ $end->{others} }) {
            next if !$other->{socket} || length($other->{out}) + length($frames) > KEPT;
            $other->{out} .= $frames;
            flush_out($other);
        }
    }
}
